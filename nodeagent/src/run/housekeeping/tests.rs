use super::*;

mod month;

#[tokio::test]
async fn skyhooks_are_gone_when_the_cluster_has_none_of_their_revisions() {
    let record = |revisions: &[&str]| -> BTreeSet<String> {
        revisions.iter().map(|r| (*r).to_owned()).collect()
    };
    let remembered: BTreeMap<String, BTreeSet<String>> = [
        ("there", record(&["old", "new"])),
        ("gone", record(&["old"])),
        ("unknown", record(&["old", "silence"])),
        ("of an earlier agent", record(&[])),
    ]
    .map(|(name, revisions)| (name.to_owned(), revisions))
    .into();
    let exists = async |revision: &str| match revision {
        "new" => Some(true),
        "silence" => None,
        _ => Some(false),
    };
    let gone = gone(&remembered, exists).await;
    assert_eq!(gone, record(&["gone"]));
}
