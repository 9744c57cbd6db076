//! The `prompt` program while it runs: its text is streamed, and signals, closed pipes and full disks end it as they should.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{TinyModel, fails, prompt, tokenizer};

/// A run that would take hours, and the first byte of its text: text is streamed.
fn endless(dir: &Path) -> (Child, [u8; 1]) {
    let mut child = prompt(dir, &["a", "--max-new-tokens", "4000000000"]).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    (child, first)
}

fn wait(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    panic!("the program did not end");
}

/// Without this, text could come in blocks instead of token by token. A killed program loses what it had not flushed: without flushes, text
/// without line ends arrives in whole blocks of 1024 bytes, whenever the program is killed.
#[test]
fn every_token_is_flushed() {
    let mut model = TinyModel::new();
    model.tokenizer = tokenizer(&["a", "b", "c", "d", "e", "f", "g"]);
    let dir = model.write();
    let arrived = || {
        let (mut child, first) = endless(dir.path());
        child.kill().unwrap();
        let mut text = first.to_vec();
        child.stdout.take().unwrap().read_to_end(&mut text).unwrap();
        child.wait().unwrap();
        text.len()
    };
    assert!((0..5).any(|_| arrived() % 1024 != 0), "text came in whole blocks, five times over");
}

/// Without this, Ctrl-C could be ignored, or lose what was generated.
#[cfg(unix)]
#[test]
fn an_interrupt_exits_with_130_and_keeps_the_text() {
    let dir = TinyModel::new().write();
    for signal in ["-INT", "-TERM"] {
        let (mut child, first) = endless(dir.path());
        let mut pipe = child.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            let mut text = first.to_vec();
            pipe.read_to_end(&mut text).map(|_| text)
        });
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert_eq!(wait(&mut child), Some(130), "{signal}");
        let text = reader.join().unwrap().unwrap();
        assert!(String::from_utf8(text).is_ok(), "{signal}: the text ends between characters");
    }
}

/// Without this, Ctrl-C in a session could do nothing, which a line editor that keeps the signal for itself once caused, or end it.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_in_a_session_stops_the_continuation_only() {
    if Command::new("script").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("not checked: script(1), which makes a terminal, is not there");
    }
    let dir = TinyModel::new().write();
    let model = dir.path().display();
    // `exec`, because some shells stay, get the signal too, and end with its code in place of the program's.
    let program = env!("CARGO_BIN_EXE_prompt");
    let line = format!("exec {program} --device cpu --max-new-tokens 4000000000 --model {model}");
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"]);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (sender, shown) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            let _ = sender.send(bytes[..count].to_vec());
        }
    });
    let program = child.id();
    let wait_for = |mark: u8| {
        let began = Instant::now();
        let next = || shown.recv_timeout(Duration::from_secs(20)).expect("the program shows something");
        while !next().contains(&mark) {
            if began.elapsed() > Duration::from_secs(20) {
                Command::new("kill").arg(program.to_string()).status().unwrap();
                panic!("{:?} did not appear within 20 s", char::from(mark));
            }
        }
    };
    wait_for(b'>');
    for _ in 0..2 {
        keys.write_all(b"ab\r").unwrap();
        // Nobody typed it: the model speaks.
        wait_for(b'c');
        keys.write_all(b"\x03").unwrap();
        wait_for(b'>');
    }
    keys.write_all(b"\x04").unwrap();
    assert_eq!(wait(&mut child), Some(0));
}

/// Without this, a user who keeps a processor for something else could be given all of them, or one who asks for more none of them.
#[cfg(target_os = "linux")]
#[test]
fn as_many_threads_work_as_were_asked_for() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/shakespeare-char-small");
    if !dir.exists() {
        return eprintln!("not checked: {} is not there", dir.display());
    }
    for threads in [1, 3] {
        let asked = threads.to_string();
        let arguments = ["ROMEO:", "--threads", &asked, "--max-new-tokens", "4000000000"];
        let mut child = prompt(&dir, &arguments).spawn().unwrap();
        // The first tokens may come before there was work for several.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        let there = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().count();
        child.kill().unwrap();
        child.wait().unwrap();
        // One more waits for signals.
        assert_eq!(there, threads + 1);
    }
}

/// Without this, `prompt … | head` would end in a panic.
#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let dir = TinyModel::new().write();
    let (mut child, _) = endless(dir.path());
    drop(child.stdout.take());
    assert_eq!(wait(&mut child), Some(0));
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(message.lines().count(), 1, "only the line that says where it runs: {message}");
}

/// Without this, a full disk would look like success.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let dir = TinyModel::new().write();
    let mut command = prompt(dir.path(), &["a"]);
    command.stdout(fs::File::create("/dev/full").unwrap());
    fails(command, 4, &["cannot write to standard output"]);
}
