//! What has failed, from the words of the coordinator: `package NAME in stage STAGE: WHAT`.

/// A failure of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure<'a> {
    pub(super) package: &'a str,
    stage: &'a str,
    said: &'a str,
}

/// What kind of thing has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A step or a check.
    Step,
    /// The image cannot be had.
    Image,
    /// A variable has no value, because a Secret or a ConfigMap is missing.
    Env,
    /// The Skyhook leaves out something that the package needs.
    Spec,
    Interrupt,
}

impl<'a> Failure<'a> {
    /// `None` when the message has another form.
    pub(super) fn of(message: &'a str) -> Option<Self> {
        let (package, rest) = message.strip_prefix("package ")?.split_once(' ')?;
        let rest = rest.strip_prefix("failed ").unwrap_or(rest);
        let rest = rest.strip_prefix("in stage ")?;
        let (stage, said) = rest.split_once(": ").unwrap_or((rest, ""));
        Some(Self {
            package,
            stage,
            said,
        })
    }

    pub(super) fn kind(self) -> Kind {
        if self.said.starts_with("image ") {
            Kind::Image
        } else if self.said.starts_with("env ") {
            Kind::Env
        } else if self.said.starts_with("expected config file ")
            || self.said.ends_with(" names a variable that is not set")
        {
            Kind::Spec
        } else if self.stage.ends_with("interrupt") && !self.stage.starts_with("post") {
            Kind::Interrupt
        } else {
            Kind::Step
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_tell_what_has_failed() {
        for (message, want) in [
            (
                "package aa failed in stage apply: apply step x exited with 3",
                Some(("aa", Kind::Step)),
            ),
            (
                "package aa in stage config: config-check step x exited with 1",
                Some(("aa", Kind::Step)),
            ),
            (
                "package aa failed in stage config",
                Some(("aa", Kind::Step)),
            ),
            (
                "package aa failed in stage apply: image r.example/aa:1.0.0: not found",
                Some(("aa", Kind::Image)),
            ),
            (
                "package aa failed in stage apply: env A: secret s does not exist",
                Some(("aa", Kind::Env)),
            ),
            (
                "package aa failed in stage apply: expected config file x is missing: add the key",
                Some(("aa", Kind::Spec)),
            ),
            (
                "package aa failed in stage apply: step a: argument env:B names a variable that is not set",
                Some(("aa", Kind::Spec)),
            ),
            (
                "package aa failed in stage interrupt: restart of x: no such unit",
                Some(("aa", Kind::Interrupt)),
            ),
            (
                "package aa failed in stage uninstall-interrupt: x",
                Some(("aa", Kind::Interrupt)),
            ),
            (
                "package aa failed in stage post-interrupt: x",
                Some(("aa", Kind::Step)),
            ),
            ("the agent is too old", None),
            ("package", None),
        ] {
            let found = Failure::of(message).map(|failure| (failure.package, failure.kind()));
            assert_eq!(found, want, "{message}");
        }
    }
}
