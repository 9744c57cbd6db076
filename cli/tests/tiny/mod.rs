//! A tiny model for `touchstone bench`, and how the tests run it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The dimensions of a tiny model, with a context in which one length of prompt fits.
pub fn config() -> Value {
    json!({
        "vocab_size": 23, "max_position_embeddings": 40, "hidden_size": 8, "num_attention_heads": 2,
        "intermediate_size": 20, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
        "tie_word_embeddings": true, "model_type": "touchstone_gpt", "dtype": "float32"
    })
}

/// A folder with this `config.json`, and the file's path.
pub fn written(config: &Value) -> (TempDir, String) {
    let folder = tempfile::Builder::new().prefix("tiny&<").tempdir().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_touchstone"))
}

/// `PROGRAM bench` on the CPU, far from this machine's settings.
pub fn bench(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TOUCHSTONE_"))
    {
        command.env_remove(name);
    }
    command.args(["bench", "--repeats", "3"]).args(arguments).env("TOUCHSTONE_DEVICE", "cpu");
    command
}

/// Exit code, standard output, standard error.
pub fn outcome(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The object that `--json` prints, of a run that must succeed.
pub fn json_of(command: Command) -> Value {
    let (code, stdout, stderr) = outcome(command);
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// Asserts that a run ends with this code and one complaint that holds all of `parts`; what it printed before.
pub fn stopped(command: Command, code: i32, parts: &[&str]) -> String {
    let shown = format!("{command:?}");
    let (found, stdout, stderr) = outcome(command);
    assert_eq!(found, code, "{shown}: {stderr}");
    let complaint =
        stderr.lines().find(|line| line.starts_with("touchstone: ") || line.starts_with("error: "));
    let complaint = complaint.unwrap_or_else(|| panic!("{shown}: no complaint in {stderr}"));
    for part in parts {
        assert!(complaint.contains(part), "{shown}: {part:?} is not in {complaint:?}");
    }
    stdout
}
