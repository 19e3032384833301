use super::*;
use crate::testing::{node, object, record};

fn fleet() -> Vec<Node> {
    let mut failing = node(
        "worker-10",
        &[
            (
                "nodeState_gpu-init",
                r#"{"aa|1.2.3":{"name":"aa","version":"1.2.3","image":"r/aa","stage":"apply","state":"erroring","restarts":3}}"#,
            ),
            ("runtimeRequiredCordon", "true"),
        ],
        &[],
    );
    failing.spec = Some(object(serde_json::json!({ "unschedulable": true })));
    vec![
        node(
            "worker-2",
            &[(
                "nodeState_gpu-init",
                &record("aa 1.2.3 config complete, bb 2.0 apply in_progress"),
            )],
            &[],
        ),
        failing,
        node(
            "worker-1",
            &[
                ("nodeState_gpu-init", &record("aa 1.2.3 config complete")),
                ("nodeState_base", &record("cc 1 post-interrupt complete")),
            ],
            &[],
        ),
        node("broken", &[("nodeState_gpu-init", "no JSON")], &[]),
        node("other", &[], &[]),
    ]
}

#[test]
fn the_list_of_nodes() {
    let head = "Skyhook: gpu-init\n\nSummary: 3 nodes (1 complete, 1 erroring, 1 in progress)\n\n";
    let table = "\
NODE       STATUS       PACKAGES
----       ------       --------
worker-1   complete     1/1
worker-10  ERRORING     0/1
worker-2   in_progress  1/2
";
    let wide = "\
NODE       STATUS       PACKAGES  RESTARTS
----       ------       --------  --------
worker-1   complete     1/1       0
worker-10  ERRORING     0/1       3
worker-2   in_progress  1/2       0
";
    let json = r#"{
  "skyhookName": "gpu-init",
  "nodes": [
    {
      "nodeName": "worker-1",
      "status": "complete",
      "packagesComplete": 1,
      "packagesTotal": 1,
      "restarts": 0
    },
    {
      "nodeName": "worker-10",
      "status": "erroring",
      "packagesComplete": 0,
      "packagesTotal": 1,
      "restarts": 3
    },
    {
      "nodeName": "worker-2",
      "status": "in_progress",
      "packagesComplete": 1,
      "packagesTotal": 2,
      "restarts": 0
    }
  ]
}
"#;
    let yaml = "\
nodes:
- nodeName: worker-1
  packagesComplete: 1
  packagesTotal: 1
  restarts: 0
  status: complete
- nodeName: worker-10
  packagesComplete: 0
  packagesTotal: 1
  restarts: 3
  status: erroring
- nodeName: worker-2
  packagesComplete: 1
  packagesTotal: 2
  restarts: 0
  status: in_progress
skyhookName: gpu-init
";
    let given = |format| listed("gpu-init", &fleet(), format).unwrap();
    assert_eq!(given(Format::Table), format!("{head}{table}"));
    assert_eq!(given(Format::Wide), format!("{head}{wide}"));
    assert_eq!(given(Format::Json), json);
    assert_eq!(given(Format::Yaml), yaml);
    let nobody = listed("x", &fleet(), Format::Json).unwrap();
    assert_eq!(nobody, "No nodes found for Skyhook \"x\"\n");
}

#[test]
fn the_status_of_nodes() {
    let table = "\
NODE       SKYHOOK   STATUS       PACKAGES  CORDONED  RUNTIME-REQUIRED-CORDON
----       -------   ------       --------  --------  -----------------------
worker-1   base      complete     1/1       false     false
worker-1   gpu-init  complete     1/1       false     false
worker-10  gpu-init  erroring     0/1       true      true
worker-2   gpu-init  in_progress  1/2       false     false
";
    let wide = "\
NODE       SKYHOOK   PACKAGE  VERSION  STAGE   STATE        RESTARTS  IMAGE  CORDONED  RUNTIME-REQUIRED-CORDON
----       -------   -------  -------  -----   -----        --------  -----  --------  -----------------------
worker-1   gpu-init  aa       1.2.3    config  complete     0         r/aa   false     false
worker-10  gpu-init  aa       1.2.3    apply   erroring     3         r/aa   true      true
worker-2   gpu-init  aa       1.2.3    config  complete     0         r/aa   false     false
worker-2   gpu-init  bb       2.0      apply   in_progress  0         r/bb   false     false
";
    let json = r#"[
  {
    "nodeName": "worker-10",
    "skyhookName": "gpu-init",
    "status": "erroring",
    "packagesComplete": 0,
    "packagesTotal": 1,
    "packages": [
      {
        "name": "aa",
        "version": "1.2.3",
        "stage": "apply",
        "state": "erroring",
        "restarts": 3,
        "image": "r/aa"
      }
    ],
    "cordoned": true,
    "runtimeRequiredCordon": true
  }
]
"#;
    let yaml = "\
- cordoned: false
  nodeName: worker-1
  packages:
  - image: r/cc
    name: cc
    restarts: 0
    stage: post-interrupt
    state: complete
    version: \"1\"
  packagesComplete: 1
  packagesTotal: 1
  runtimeRequiredCordon: false
  skyhookName: base
  status: complete
";
    let given = |only: Option<&str>, format| shown(&fleet(), false, only, format).unwrap();
    assert_eq!(given(None, Format::Table), table);
    assert_eq!(given(Some("gpu-init"), Format::Wide), wide);
    assert_eq!(given(Some("base"), Format::Yaml), yaml);
    let one = chosen(fleet(), &["worker-1.+".to_owned()]).unwrap();
    assert_eq!(shown(&one, true, None, Format::Json).unwrap(), json);
    let nobody = shown(&fleet(), false, Some("x"), Format::Table).unwrap();
    assert_eq!(nobody, "No Skyhook activity found on specified nodes\n");
    let nobody = shown(&[], true, None, Format::Table).unwrap();
    assert_eq!(nobody, "No nodes matched the specified patterns\n");
}

#[test]
fn records_that_cannot_be_read_are_named() {
    let warning =
        "Warning: skipping node \"broken\" - invalid annotation: expected ident at line 1 column 2";
    assert_eq!(unreadable(&fleet(), None), [warning]);
    assert_eq!(unreadable(&fleet(), Some("base")), [""; 0]);
}
