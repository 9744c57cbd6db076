//! The command as a user meets it: what it prints, and its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The repository: tests run in the package's folder.
fn root() -> PathBuf {
    std::env::current_dir().unwrap().parent().unwrap().to_owned()
}

fn touchstone(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_touchstone"))
        .args(arguments)
        .env_remove("TOUCHSTONE_DEVICE")
        .env_remove("TOUCHSTONE_ROOT")
        .output()
        .unwrap()
}

/// Exit code, standard output, standard error.
fn outcome(arguments: &[&str]) -> (i32, String, String) {
    let output = touchstone(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A copy of a golden case in a folder of its own.
fn copy_of(case: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let folder = copy.path().join("cases").join(case);
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(root().join("golden/cases").join(case)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    copy
}

fn check(dir: &Path) -> (i32, String, String) {
    outcome(&["check", dir.to_str().unwrap()])
}

fn replace_in_manifest(copy: &Path, case: &str, from: &str, to: &str) {
    let path = copy.join("cases").join(case).join("case.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

/// The line of standard error that is the command's own.
fn complaint(stderr: &str) -> &str {
    stderr.lines().find(|line| line.starts_with("touchstone: ")).unwrap_or_else(|| panic!("none in {stderr}"))
}

/// Without this, a command that refuses everything would pass the tests below.
#[test]
fn a_good_folder_passes() {
    let (code, stdout, stderr) = check(copy_of("gelu/sweep_f32").path());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("gelu/sweep_f32") && stdout.contains("host-f32") && stdout.contains("host-f64"));
    assert!(stdout.ends_with("2 outputs compared, 0 failed\n"), "{stdout}");
    let (code, stdout, _) = check(&root().join("golden/cases/layernorm"));
    assert_eq!(code, 0, "{stdout}");
}

/// Without this, `--json` could print what no program can read.
#[test]
fn json_is_one_object_with_every_figure() {
    let copy = copy_of("gelu/sweep_f32");
    let (code, stdout, _) = outcome(&["check", "--json", copy.path().to_str().unwrap()]);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 0);
    assert_eq!(value["summary"]["compared"], 2);
    let gate = value["rows"].as_array().unwrap().iter().find(|row| row["rule"] == "gate").unwrap();
    assert!(gate["ratio"].as_f64().unwrap() <= 2.0 && gate["passed"] == true, "{gate}");
}

/// Without this, wrong numbers would not fail the command. A LayerNorm with another eps is what a port gets wrong.
#[test]
fn a_failing_comparison_exits_with_1() {
    let copy = copy_of("layernorm/odd_f32");
    replace_in_manifest(copy.path(), "layernorm/odd_f32", "\"eps\": ", "\"eps\": 2");
    let (code, stdout, _) = check(copy.path());
    assert_eq!(code, 1);
    assert!(stdout.contains("FAIL: error ratio"), "{stdout}");
}

/// Without this, a damaged case could pass.
#[test]
fn damaged_and_missing_files_exit_with_2_and_are_named() {
    let copy = copy_of("gelu/sweep_f32");
    let file = copy.path().join("cases/gelu/sweep_f32/x.npy");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, stdout, stderr) = check(copy.path());
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("x.npy: tensors.x.sha256: is "), "{stderr}");
    assert!(stdout.contains("not checked") && stdout.contains("0 outputs compared"), "{stdout}");
    std::fs::remove_file(&file).unwrap();
    let (code, _, stderr) = check(copy.path());
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("x.npy: cannot be read"), "{stderr}");
}

/// Without this, a surplus or a misspelt field would be ignored, and with it what it means.
#[test]
fn operands_and_settings_that_the_op_does_not_know_exit_with_2() {
    let copy = copy_of("gelu/sweep_f32");
    replace_in_manifest(
        copy.path(),
        "gelu/sweep_f32",
        "\"config\": {",
        "\"config\": {\"approximate\": \"tanh\"",
    );
    let (code, _, stderr) = check(copy.path());
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("case.json: config: unknown field `approximate`"), "{stderr}");
    let copy = copy_of("gelu/sweep_f32");
    let entry = "\"x\": {\"role\": \"input\"";
    replace_in_manifest(copy.path(), "gelu/sweep_f32", entry, "\"z\": {\"role\": \"input\"");
    let (code, _, stderr) = check(copy.path());
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("case.json: tensors.x: is missing"), "{stderr}");
}

/// Without this, an op that nobody checks would count as passed.
#[test]
fn an_unknown_op_is_not_checked_and_exits_with_2() {
    let copy = copy_of("gelu/sweep_f32");
    replace_in_manifest(copy.path(), "gelu/sweep_f32", "\"op\": \"gelu\"", "\"op\": \"geglu\"");
    let (code, stdout, stderr) = check(copy.path());
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("case.json: op: \"geglu\" is not known, not checked"), "{stderr}");
    assert!(stdout.contains("0 outputs compared"), "{stdout}");
}

/// Without this, the code of a failure would hide behind that of an unknown op.
#[test]
fn a_failure_outweighs_what_is_not_checked() {
    let copy = copy_of("layernorm/odd_f32");
    replace_in_manifest(copy.path(), "layernorm/odd_f32", "\"eps\": ", "\"eps\": 2");
    let unknown = copy_of("gelu/sweep_f32");
    replace_in_manifest(unknown.path(), "gelu/sweep_f32", "\"op\": \"gelu\"", "\"op\": \"geglu\"");
    let (code, ..) = outcome(&["check", copy.path().to_str().unwrap(), unknown.path().to_str().unwrap()]);
    assert_eq!(code, 1);
}

/// Without this, a misspelt folder would pass, because nothing in it fails.
#[test]
fn nothing_found_exits_with_2() {
    let empty = tempfile::tempdir().unwrap();
    let (code, _, stderr) = check(empty.path());
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("holds no case.json"), "{stderr}");
    let (code, _, stderr) = check(&empty.path().join("absent"));
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("absent: cannot be read"), "{stderr}");
    assert_eq!(outcome(&["check"]).0, 2);
    assert_eq!(outcome(&["check", "--device", "gpu", "."]).0, 2);
}

/// Without this, a case that the device cannot take would count as passed.
#[test]
fn a_precision_that_takes_no_case_exits_with_2() {
    let copy = copy_of("gelu/sweep_bf16");
    let (code, _, stderr) = outcome(&["check", "--dtype", "f32", copy.path().to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(complaint(&stderr).contains("not checked"), "{stderr}");
}

/// Without this, a check on a machine without the GPU asked for would look like one that passed.
#[test]
fn a_gpu_that_is_not_there_exits_with_3() {
    let copy = copy_of("gelu/sweep_f32");
    // No machine has a thousand.
    let (code, stdout, stderr) = outcome(&["check", "--device", "cuda:999", copy.path().to_str().unwrap()]);
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    assert!(complaint(&stderr).starts_with("touchstone: no CUDA device: "), "{stderr}");
}

/// Without this, the doctor could be ill itself, or call a machine without a GPU ready for one.
#[test]
fn the_doctor_names_what_is_there_and_what_is_missing() {
    let (code, text, stderr) = outcome(&["doctor"]);
    assert_eq!(code, 0, "{text}{stderr}");
    assert!(text.contains("shakespeare-char, ") && text.contains("golden cases"), "{text}");
    let (code, stdout, _) = outcome(&["doctor", "--json"]);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &value["cpu_ready"]), (0, &Value::Bool(true)));
    let findings = value["findings"].as_array().unwrap();
    for name in ["cpu", "model", "golden cases", "driver", "gpu", "nvrtc", "kernel cache"] {
        assert!(findings.iter().any(|finding| finding["name"] == name), "{name}");
    }
    assert!(findings.iter().all(|finding| finding["present"] == true || finding["remedy"].is_string()));
    let expected = if value["cuda_ready"] == true { 0 } else { 3 };
    assert_eq!(outcome(&["doctor", "--require-cuda"]).0, expected);
}
