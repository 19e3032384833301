use super::*;

#[test]
fn every_rule_has_its_field() {
    assert_eq!(crds().map(|crds| crds.len()), Ok(4));
}

#[test]
fn a_rule_without_its_field_is_an_error() {
    for path in [
        "spec.package",
        "spec.packages.image",
        "spec.packages{}.images",
        "spec.packages[].image",
        "spec.packages{}.env{}.name",
        "spec.packages{}.env[].name{}",
    ] {
        let renamed = with_rules(Skyhook::crd(), |schema| schema.at(path).map(drop));
        assert_eq!(renamed, Err(UnknownField(path.to_owned())));
    }
    let known = "spec.packages{}.env[].name";
    assert!(with_rules(Skyhook::crd(), |schema| schema.at(known).map(drop)).is_ok());
}

#[test]
fn texts_are_strings_of_cel() {
    assert_eq!(schema::text(r"it's a \ "), r"'it\'s a \\ '");
    assert_eq!(
        schema::format("all: %s", "self"),
        "'all: %s'.format([self])"
    );
}
