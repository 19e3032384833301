//! Writes entries to systemd's journal on the host. After a reboot, `journalctl -b -1 -t skyhook` shows them.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's writing to the host"
)]

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::Host;

/// journald's socket for entries.
const SOCKET: &str = "/run/systemd/journal/socket";
/// journald's socket for method calls (Varlink), since systemd 240.
const VARLINK: &str = "/run/systemd/journal/io.systemd.journal";
/// The socket of syslog daemons.
const SYSLOG: &str = "/dev/log";
const IDENTIFIER: &str = "skyhook";
/// syslog's priority `notice`: normal but significant.
const NOTICE: u8 = 5;
/// syslog's facility `user`: for all programs that have no facility of their own.
const USER: u8 = 1;
/// How long sending an entry may take.
const SEND: Duration = Duration::from_secs(2);
/// How long journald may take to flush its journal to the disk.
const SYNC: Duration = Duration::from_secs(5);
/// How long to wait until an old journald, which cannot be asked, has added the entry to its journal file.
const TAKE_IN: Duration = Duration::from_millis(200);

/// Writes one entry to the journal of the host at `root`, and waits until the entry is on the disk. Names of the
/// additional fields must be in capitals. Without journald, writes to syslog. Blocks for a few seconds at most.
pub fn note(root: &Path, message: &str, fields: &[(&str, &str)]) -> io::Result<()> {
    let host = Host::open(root)?;
    match send(&host, SOCKET, &entry(message, fields)) {
        Ok(()) => synchronize(&host),
        Err(e) if is_absent(&e) => send(&host, SYSLOG, line(message, fields).as_bytes()),
        Err(e) => Err(e),
    }
}

/// True when nothing listens on the socket.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused
    )
}

fn send(host: &Host, socket: &str, bytes: &[u8]) -> io::Result<()> {
    let path = host.locate(socket)?;
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(SEND))?;
    sender
        .send_to(bytes, path.path())
        .map(drop)
        .map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))
}

/// An entry in journald's native format: `NAME=value`, or name, length and value if the value contains line breaks.
fn entry(message: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let priority = NOTICE.to_string();
    let ours = [
        ("MESSAGE", message),
        ("PRIORITY", priority.as_str()),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
    ];
    let mut bytes = Vec::new();
    for (name, value) in ours.iter().chain(fields) {
        bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            bytes.push(b'\n');
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            bytes.push(b'=');
        }
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

/// A message for syslog: one line, because syslog has no fields.
fn line(message: &str, fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let text = format!(
        "<{}>{IDENTIFIER}: {message} [{}]",
        USER << 3 | NOTICE,
        fields.join(" ")
    );
    text.replace(|c: char| c.is_control(), " ")
}

/// Waits until the journal is on the disk.
fn synchronize(host: &Host) -> io::Result<()> {
    match ask_to_synchronize(host.locate(VARLINK)?.path()) {
        Ok(()) => Ok(()),
        // An older journald cannot be asked to flush. It maps the journal file, so fsync flushes the mapped pages.
        Err(e) if is_absent(&e) => {
            std::thread::sleep(TAKE_IN);
            synchronize_files(host.locate("/var/log/journal")?.path())
        }
        Err(e) => Err(io::Error::new(
            e.kind(),
            format!("journald does not say that its journal is on the disk: {e}"),
        )),
    }
}

fn ask_to_synchronize(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(SEND))?;
    stream.set_read_timeout(Some(SYNC))?;
    stream.write_all(b"{\"method\":\"io.systemd.Journal.Synchronize\",\"parameters\":{}}\0")?;
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(0, &mut answer)?;
    answer.pop();
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    match answer.get("error") {
        None => Ok(()),
        Some(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Flushes the journal files. There are none when journald keeps the journal in memory only.
fn synchronize_files(journals: &Path) -> io::Result<()> {
    for machine in fs::read_dir(journals).into_iter().flatten().flatten() {
        match File::open(machine.path().join("system.journal")) {
            Ok(file) => file.sync_all()?,
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const FIELDS: [(&str, &str); 2] = [("PACKAGE", "tuning|1.2.0"), ("REASON", "two\nlines")];

    /// Creates a socket in the root directory of a test host.
    fn socket(root: &Path, path: &str) -> UnixDatagram {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        UnixDatagram::bind(path).unwrap()
    }

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        socket.set_read_timeout(Some(SYNC)).unwrap();
        let n = socket.recv(&mut bytes).unwrap();
        bytes.truncate(n);
        bytes
    }

    /// A journald that answers one request with `answer`, and returns the request.
    fn journald(root: &Path, answer: &'static [u8]) -> thread::JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(root.join(VARLINK.trim_start_matches('/'))).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).unwrap();
            request.truncate(n);
            stream.write_all(answer).unwrap();
            request
        })
    }

    #[test]
    fn an_entry_is_written_and_synchronized() {
        let root = tempfile::tempdir().unwrap();
        let journal = socket(root.path(), SOCKET);
        let sync = journald(root.path(), b"{\"parameters\":{}}\0");
        note(root.path(), "the host is rebooted", &FIELDS).unwrap();
        let mut want = b"MESSAGE=the host is rebooted\nPRIORITY=5\nSYSLOG_IDENTIFIER=skyhook\n\
                         PACKAGE=tuning|1.2.0\nREASON\n"
            .to_vec();
        want.extend_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(b"two\nlines\n");
        assert_eq!(received(&journal), want);
        let request = sync.join().unwrap();
        assert_eq!(
            request,
            b"{\"method\":\"io.systemd.Journal.Synchronize\",\"parameters\":{}}\0"
        );
    }

    #[test]
    fn a_journal_that_is_not_on_the_disk_is_told() {
        let root = tempfile::tempdir().unwrap();
        let _journal = socket(root.path(), SOCKET);
        let sync = journald(root.path(), b"{\"error\":\"io.systemd.System\"}\0");
        let error = note(root.path(), "text", &[]).unwrap_err().to_string();
        assert!(error.contains("io.systemd.System"), "{error}");
        sync.join().unwrap();
    }

    #[test]
    fn an_old_journald_is_synchronized_by_its_files() {
        let root = tempfile::tempdir().unwrap();
        let journal = socket(root.path(), SOCKET);
        let machine = root.path().join("var/log/journal/0123");
        fs::create_dir_all(&machine).unwrap();
        fs::write(machine.join("system.journal"), "x").unwrap();
        note(root.path(), "text", &[]).unwrap();
        assert!(received(&journal).starts_with(b"MESSAGE=text\n"));
        // A journal file that cannot be opened is an error.
        fs::remove_file(machine.join("system.journal")).unwrap();
        std::os::unix::fs::symlink("system.journal", machine.join("system.journal")).unwrap();
        note(root.path(), "text", &[]).unwrap_err();
    }

    #[test]
    fn without_journald_it_is_syslog() {
        let root = tempfile::tempdir().unwrap();
        let syslog = socket(root.path(), "/run/syslog");
        fs::create_dir_all(root.path().join("dev")).unwrap();
        std::os::unix::fs::symlink("/run/syslog", root.path().join("dev/log")).unwrap();
        note(root.path(), "text", &FIELDS).unwrap();
        let got = String::from_utf8(received(&syslog)).unwrap();
        assert_eq!(
            got,
            "<13>skyhook: text [PACKAGE=tuning|1.2.0 REASON=two lines]"
        );
    }

    #[test]
    fn a_host_that_logs_nowhere_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let error = note(root.path(), "text", &[]).unwrap_err().to_string();
        assert!(error.starts_with("/dev/log: "), "{error}");
    }
}
