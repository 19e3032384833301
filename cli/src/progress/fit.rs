//! Makes tables fit on a screen.

/// Columns are not made narrower than this.
const LEAST: usize = 10;

/// Cuts the cells of the widest columns, so that the table with two spaces between its columns is as wide as the screen.
/// `least` says of columns how wide they stay at least. What still does not fit is for the caller to cut.
pub(super) fn fit(
    header: &[&str],
    least: &[(&str, usize)],
    rows: &mut [Vec<String>],
    width: usize,
) {
    let count = |text: &str| text.chars().count();
    let column = |at: usize| rows.iter().filter_map(move |row| row.get(at));
    let mut widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(at, name)| {
            column(at)
                .map(|cell| count(cell))
                .fold(count(name), usize::max)
        })
        .collect();
    let between = 2 * header.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + between > width {
        let stays = |at: usize| {
            let given = least.iter().find(|(name, _)| *name == header[at]);
            given
                .map_or(LEAST, |(_, least)| *least)
                .max(count(header[at]))
        };
        let can_shrink = |(at, width): &(usize, &mut usize)| **width > stays(*at);
        let columns = widths.iter_mut().enumerate().filter(can_shrink);
        // Of columns that are as wide as each other, the last one.
        let Some((_, widest)) = columns.max_by_key(|(_, width)| **width) else {
            break;
        };
        *widest -= 1;
    }
    for row in rows {
        for (cell, width) in row.iter_mut().zip(&widths) {
            *cell = cut(cell, *width);
        }
    }
}

/// A text that is no longer than so many characters.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_columns_are_cut() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let long = [
            "worker-1.example.internal",
            "████████████ 40%",
            "pkg-with-a-long-name",
        ];
        for (width, want) in [
            (100, long),
            (65, long),
            (60, ["worker-1.example.in…", long[1], long[2]]),
            (59, ["worker-1.example.in…", long[1], "pkg-with-a-long-na…"]),
            (20, ["worker-1.ex…", long[1], "pkg-with-…"]),
        ] {
            let mut rows = vec![row(long), row(["n", "", "p"])];
            fit(
                &["NODE", "BAR", "PACKAGE"],
                &[("BAR", usize::MAX), ("NODE", 12)],
                &mut rows,
                width,
            );
            assert_eq!(rows, [row(want), row(["n", "", "p"])], "{width}");
        }
    }
}
