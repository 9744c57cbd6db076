//! `touchstone bench --peers`: others beside our figures. The peers here are shell scripts.

mod tiny;

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use tiny::{bench, config, json_of, program, stopped, written};

/// A repository's root whose peers are these shell scripts; to be run with `--python /bin/sh`.
fn root_with_peers(decode: &str, prefill: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for folder in ["golden/cases", "models", "benches/peers"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    fs::write(root.path().join("benches/peers/decode.py"), decode).unwrap();
    fs::write(root.path().join("benches/peers/prefill.py"), prefill).unwrap();
    root
}

fn with_peer(root: &TempDir, path: &str, python: &str) -> Command {
    let arguments =
        ["--config", path, "--measure", "decode,prefill", "--peers", "--python", python, "--json"];
    let mut command = bench(program(), &arguments);
    command.env("TOUCHSTONE_ROOT", root.path());
    command
}

/// Without this, the peer could be timed at other settings than ours, or its figures set against another row.
#[test]
fn peers_stand_beside_our_figures() {
    let (_folder, path) = written(&config());
    let root = root_with_peers(
        r#"echo '{"device": "'"$*"'", "rows": [
            {"mode": "eager", "formulation": null, "us_per_token_median": 5e5, "us_per_token_p90": 6e5, "repeats": 3},
            {"mode": "compiled", "formulation": "sdpa", "us_per_token_median": 4e5, "us_per_token_p90": 7e5, "repeats": 3}]}'"#,
        r#"echo '{"asked": "'"$*"'", "matrix_flop_per_s": 1e13, "rows": [
            {"mode": "eager", "tokens": 16, "us_median": 2e6, "us_p90": 3e6, "repeats": 3}]}'"#,
    );
    let report = json_of(with_peer(&root, &path, "/bin/sh"));
    let rows = &report["models"][0]["rows"];
    let systems: Vec<_> =
        rows.as_array().unwrap().iter().map(|row| row["system"].as_str().unwrap()).collect();
    let expected = ["touchstone", "pytorch eager", "pytorch compiled sdpa", "touchstone", "pytorch eager"];
    assert_eq!(systems, expected);
    assert_eq!(
        (&rows[4]["prompt"], &rows[4]["median"], &rows[4]["measure"]),
        (&json!(16), &json!(2e6), &json!("prefill"))
    );
    let share = rows[4]["gflop_per_s"].as_f64().unwrap() * 1e9 / 1e13;
    assert!((rows[4]["matrix_share"].as_f64().unwrap() / share - 1.0).abs() < 1e-9, "{rows}");
    let ratio = rows[2]["times_ours"].as_f64().unwrap() * rows[0]["median"].as_f64().unwrap();
    assert!((ratio - 4e5).abs() < 1.0 && rows[2]["p90"] == 7e5 && rows[2]["measure"] == "decode", "{rows}");
    assert!(rows[1]["bandwidth_share"].is_null(), "our share of the bandwidth is not the peer's");
    let asked = format!(
        "--config {path} --device cpu --dtypes f32 --modes eager --new-tokens 39 --repeats 3 --temperature 0.8 --top-k 40"
    );
    assert_eq!(report["models"][0]["peers"]["device"], asked);
}

/// Without this, a run without PyTorch would look like one in which PyTorch was not asked for, or cost our own figures.
#[test]
fn peers_that_cannot_run_exit_with_2() {
    let (_folder, path) = written(&config());
    let stops = |script: &str, python: &str, parts: &[&str]| {
        let root = root_with_peers(script, "");
        let report: Value =
            serde_json::from_str(&stopped(with_peer(&root, &path, python), 2, parts)).unwrap();
        let model = &report["models"][0];
        let measures: Vec<_> =
            model["rows"].as_array().unwrap().iter().map(|row| (&row["measure"], &row["system"])).collect();
        let ours = json!("touchstone");
        assert_eq!(measures, [(&json!("decode"), &ours), (&json!("prefill"), &ours)]);
        assert!(model["peers"].is_null());
    };
    stops("exit 1", "/bin/sh", &["--peers: /bin/sh benches/peers/decode.py: exit status: 1"]);
    stops("exit 1", "/absent/python", &["/absent/python", "cannot be started"]);
    stops("true", "/bin/sh", &["prints no report"]);
}
