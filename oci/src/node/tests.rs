#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// The user namespace of the host.
const OF_HOST: &str = "user:[4026531837]";

/// A host with files and processes that the test makes.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("proc")).unwrap();
        let host = Self(dir);
        host.user_namespace(1, OF_HOST);
        host
    }

    fn user_namespace(&self, pid: u32, name: &str) {
        let directory = self.0.path().join(format!("proc/{pid}/ns"));
        fs::create_dir_all(&directory).unwrap();
        let link = directory.join("user");
        fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(name, link).unwrap();
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A process of the host. The first word of the command line is the program.
    fn process(&self, pid: u32, line: &str, environment: &[&str]) {
        self.process_in(pid, line, environment, "");
    }

    /// A process with more numbers, in PID namespaces of its own.
    fn process_in(&self, pid: u32, line: &str, environment: &[&str], inner: &str) {
        let name = line.split(' ').next().unwrap().rsplit('/').next().unwrap();
        let file = |name: &str| format!("/proc/{pid}/{name}");
        let terminated = |texts: &mut dyn Iterator<Item = &str>| {
            texts.map(|text| format!("{text}\0")).collect::<String>()
        };
        self.write(&file("comm"), &format!("{name}\n"));
        self.write(
            &file("status"),
            &format!("Name:\t{name}\nUid:\t0\t0\t0\t0\nNSpid:\t{pid}{inner}\n"),
        );
        self.write(&file("cgroup"), "0::/system.slice/some.service\n");
        self.write(&file("exe"), "");
        self.user_namespace(pid, OF_HOST);
        self.write(&file("cmdline"), &terminated(&mut line.split(' ')));
        self.write(
            &file("environ"),
            &terminated(&mut environment.iter().copied()),
        );
    }

    fn look(&self) -> Node {
        Node::look(&Root::open(self.0.path()).unwrap())
    }
}

fn containerd(config: &str) -> Runtime {
    Runtime::Containerd {
        config: config.into(),
    }
}

#[test]
fn the_runtime_of_the_kubelet_is_found() {
    let kubelet = "/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml";
    let usual = "/usr/bin/containerd";
    let of_docker = "containerd --config /var/run/docker/containerd/containerd.toml";
    let k3s = "containerd -c /var/lib/rancher/k3s/agent/etc/containerd/config.toml -a /run/k3s/containerd/containerd.sock";
    let k3s_config = containerd("/var/lib/rancher/k3s/agent/etc/containerd/config.toml");
    let microk8s =
        "/snap/microk8s/1/bin/containerd --config /var/snap/microk8s/1/args/containerd.toml";
    let rke2_kubelet =
        "kubelet --container-runtime-endpoint=unix:///run/k3s/containerd/containerd.sock";
    let crio_kubelet = "kubelet --container-runtime-endpoint unix:///var/run/crio/crio.sock";
    let cri_docker = "kubelet --container-runtime-endpoint=unix:///run/cri-dockerd.sock";
    let table: [(&[&str], Runtime); 11] = [
        (&[], Runtime::Unknown),
        (&[kubelet, usual], containerd("/etc/containerd/config.toml")),
        (&[usual], containerd("/etc/containerd/config.toml")),
        (&["/usr/bin/crio", crio_kubelet], Runtime::Crio),
        // Docker is there as well, for other purposes.
        (
            &[of_docker, "/usr/bin/dockerd", usual, kubelet],
            containerd("/etc/containerd/config.toml"),
        ),
        (
            &["/usr/bin/dockerd", usual, "/usr/bin/crio", crio_kubelet],
            Runtime::Crio,
        ),
        (&[usual, "/usr/bin/dockerd", cri_docker], Runtime::Docker),
        // k3s contains the kubelet, RKE2 starts one.
        (&[k3s], k3s_config.clone()),
        (&[usual, k3s], k3s_config.clone()),
        (&[usual, rke2_kubelet, k3s], k3s_config),
        (
            &[usual, microk8s],
            containerd("/var/snap/microk8s/1/args/containerd.toml"),
        ),
    ];
    for (lines, want) in table {
        let host = Host::new();
        for (pid, line) in (100..).zip(lines) {
            host.process(pid, line, &[]);
        }
        // Containers have runtimes of their own, for example to build images.
        host.process_in(900, "/usr/bin/dockerd", &[], "\t1");
        host.process_in(901, "containerd --config=/etc/other.toml", &[], "\t7");
        assert_eq!(host.look().runtime, want, "{lines:?}");
    }
}

/// Every user can run a program with the name of the kubelet or of a runtime.
#[test]
fn only_processes_of_the_hosts_root_user_are_believed() {
    let uid = |uids: &str| format!("Uid:\t{uids}\nNSpid:\t50\n");
    let root = uid("0\t0\t0\t0");
    let service = "12:memory:/system.slice/kubelet.service\n0::/\n";
    for (status, group, namespace, believed) in [
        (&root, service, OF_HOST, true),
        (&root, "0::/\n", OF_HOST, true),
        (&root, "0::/kubelet\n", OF_HOST, true),
        (&uid("1000\t1000\t1000\t1000"), service, OF_HOST, false),
        // A program with the set-user-ID bit runs as root, but with the arguments of another user.
        (&uid("1000\t0\t0\t0"), service, OF_HOST, false),
        (&uid("0\t1000\t0\t0"), service, OF_HOST, false),
        (&uid("0\t0\t1000\t0"), service, OF_HOST, false),
        (&uid("0\t0\t0\t1000"), service, OF_HOST, false),
        (&uid(""), service, OF_HOST, false),
        (&"NSpid:\t50\n".to_owned(), service, OF_HOST, false),
        (
            &root,
            "0::/kubepods.slice/kubepods-pod1.slice/x\n",
            OF_HOST,
            false,
        ),
        (
            &root,
            "4:memory:/kubepods/besteffort/pod1/x\n",
            OF_HOST,
            false,
        ),
        (
            &root,
            "0::/system.slice/docker-0a1b.scope\n",
            OF_HOST,
            false,
        ),
        (
            &root,
            "0::/machine.slice/libpod-0a1b.scope\n",
            OF_HOST,
            false,
        ),
        (&root, "0::/x/cri-containerd-0a1b.scope\n", OF_HOST, false),
        (&root, service, "user:[4026532000]", false),
    ] {
        let host = Host::new();
        host.process(
            50,
            "kubelet --image-credential-provider-config=/tmp/p.yaml --image-credential-provider-bin-dir=/tmp/b",
            &[],
        );
        host.process(51, "containerd --config=/tmp/c.toml", &[]);
        for pid in [50, 51] {
            host.write(&format!("/proc/{pid}/status"), status);
            host.write(&format!("/proc/{pid}/cgroup"), group);
            host.user_namespace(pid, namespace);
        }
        let node = host.look();
        let found = (
            node.kubelet.plugins.is_some(),
            node.runtime != Runtime::Unknown,
        );
        assert_eq!(
            found,
            (believed, believed),
            "{status:?} {group} {namespace}"
        );
    }
    // sudo under another name, which is root while it asks for a password.
    for (mode, want) in [(0o755, containerd("/x")), (0o4755, Runtime::Unknown)] {
        let host = Host::new();
        host.process(51, "containerd --config=/x", &[]);
        let program = host.0.path().join("proc/51/exe");
        fs::set_permissions(program, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(host.look().runtime, want, "{mode:o}");
    }
    // Without the namespace of the first process, nothing can be compared with it.
    let host = Host::new();
    host.process(51, "containerd", &[]);
    fs::remove_dir_all(host.0.path().join("proc/1")).unwrap();
    assert_eq!(host.look().runtime, Runtime::Unknown);
}

#[test]
fn the_socket_may_be_in_configuration_files() {
    let host = Host::new();
    host.write(
        "/etc/k.yaml",
        "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/own.sock\n",
    );
    host.write("/etc/own.toml", "[grpc]\naddress = \"/run/own.sock\"\n");
    host.process(1, "kubelet --config /etc/k.yaml", &[]);
    host.process(2, "containerd --config=/etc/own.toml", &[]);
    host.process(3, "containerd", &[]);
    assert_eq!(host.look().runtime, containerd("/etc/own.toml"));
}

#[test]
fn environments_and_plugins_are_those_of_the_running_programs() {
    let host = Host::new();
    let proxy = "HTTPS_PROXY=http://proxy:3128";
    host.process(10, "containerd", &[proxy, "A=b=c", "odd"]);
    host.process(
        11,
        "kubelet --image-credential-provider-config=/etc/p.yaml --image-credential-provider-bin-dir /opt/bin --root-dir=/data/kubelet",
        &["AWS_REGION=eu"],
    );
    let node = host.look();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let want = [pair("HTTPS_PROXY", "http://proxy:3128"), pair("A", "b=c")];
    assert_eq!(node.environment, BTreeMap::from(want));
    assert_eq!(
        node.kubelet.environment,
        Some(BTreeMap::from([pair("AWS_REGION", "eu")]))
    );
    for program in ["k3s-server", "k3s-agent", "kubelite"] {
        let host = Host::new();
        assert_eq!(host.look().kubelet.environment, None);
        host.process(12, program, &["AWS_REGION=us"]);
        let want = Some(BTreeMap::from([pair("AWS_REGION", "us")]));
        assert_eq!(host.look().kubelet.environment, want, "{program}");
        host.write("/proc/12/status", "Uid:\t1000\t1000\t1000\t1000\n");
        assert_eq!(host.look().kubelet.environment, None, "{program}");
    }
    assert_eq!(node.kubelet.root_dir, Path::new("/data/kubelet"));
    let plugins = Some(("/etc/p.yaml".into(), "/opt/bin".into()));
    assert_eq!(node.kubelet.plugins, plugins);

    // k3s has a usual place, and MicroK8s has the arguments in a file.
    let host = Host::new();
    assert_eq!(host.look().kubelet.plugins, None);
    host.write("/var/lib/rancher/credentialprovider/config.yaml", "");
    assert_eq!(
        host.look().kubelet.plugins,
        Some((
            "/var/lib/rancher/credentialprovider/config.yaml".into(),
            "/var/lib/rancher/credentialprovider/bin".into()
        ))
    );
    host.write(
        "/var/snap/microk8s/current/args/kubelet",
        "--root-dir=${SNAP_COMMON}/var/lib/kubelet\n# --x\n--image-credential-provider-config=${SNAP_DATA}/p.yaml\n\
         --image-credential-provider-bin-dir=/opt/bin\n",
    );
    let kubelet = host.look().kubelet;
    assert_eq!(
        kubelet.root_dir,
        Path::new("/var/snap/microk8s/common/var/lib/kubelet")
    );
    assert_eq!(
        kubelet.plugins,
        Some((
            "/var/snap/microk8s/current/p.yaml".into(),
            "/opt/bin".into()
        ))
    );
}

#[test]
fn the_first_docker_config_of_the_node_that_can_be_used_counts() {
    let host = Host::new();
    let files = Root::open(host.0.path()).unwrap();
    let found = || {
        let credentials = host.look().kubelet.credentials(&files);
        let sources = credentials.matching("r.io/a").into_iter();
        let sources: Vec<_> = sources.map(|it| it.source.to_string()).collect();
        (sources.join(" "), credentials.problems("r.io/a"))
    };
    let new = r#"{"auths": {"r.io": {"auth": "dTpw"}}}"#;
    let old = r#"{"r.io": {"auth": "dTpw"}}"#;
    assert_eq!(found(), (String::new(), vec![]));
    // Each one that is added comes before those that are there.
    for (path, text) in [
        ("/.dockercfg", old),
        ("/root/.dockercfg", old),
        ("/var/lib/kubelet/.dockercfg", old),
        ("/.docker/config.json", new),
        ("/root/.docker/config.json", new),
        ("/var/lib/kubelet/config.json", new),
    ] {
        host.write(path, text);
        assert_eq!(found(), (path.to_owned(), vec![]));
    }
    host.write("/var/lib/kubelet/config.json", "hunter2");
    let (sources, problems) = found();
    assert_eq!(sources, "/root/.docker/config.json");
    let want =
        "/var/lib/kubelet/config.json: the docker config is not valid JSON (line 1, column 1)";
    assert_eq!(problems, [want]);
    host.process(1, "kubelet --root-dir=/data", &["HOME=/home/k"]);
    host.write("/home/k/.docker/config.json", new);
    assert_eq!(found().0, "/home/k/.docker/config.json");
    host.write("/data/config.json", new);
    assert_eq!(found().0, "/data/config.json");
}
