//! `touchstone bench` as a user meets it: what it prints, and its exit codes. Models are tiny: seconds, not minutes.

mod tiny;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use tiny::{bench, config, json_of, outcome, program, stopped, written};

fn repository() -> PathBuf {
    std::env::current_dir().unwrap().parent().unwrap().to_owned()
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    outcome(bench(program(), arguments))
}

/// [`stopped`], without any figures.
fn refused(command: Command, code: i32, parts: &[&str]) {
    assert_eq!(stopped(command, code, parts), "");
}

fn refuses(arguments: &[&str], code: i32, parts: &[&str]) {
    refused(bench(program(), arguments), code, parts);
}

/// Without this, a measurement that was asked for could be missing, and nobody would see that it was never made.
#[test]
fn the_table_has_a_row_for_everything_asked_for() {
    let (_folder, path) = written(&config());
    let measures = "decode,context,batch,prefill,verbs";
    let (code, stdout, stderr) = run(&["--config", &path, "--measure", measures, "--batches", "1,3"]);
    assert_eq!(code, 0, "{stderr}");
    for row in [
        "decode   39 tokens",
        "context  positions 1 to 19",
        "context  positions 21 to 39",
        "batch    batch 1, 39 tokens",
        "batch    batch 3, 39 tokens",
        "prefill  16 tokens",
        "verbs    linear 8 to 8",
        "verbs    linear 8 to 20",
        "verbs    linear 20 to 8",
        "verbs    logits 8 to 23",
        "verbs    attention 2 heads of 4 over 40",
    ] {
        assert_eq!(stdout.matches(row).count(), 1, "{row}: {stdout}");
    }
    assert!(
        stdout.contains("random weights; cpu, f32") && stdout.contains("checked: 32 greedy tokens"),
        "{stdout}"
    );
}

/// Without this, a figure could be NaN, zero, or of another number of runs than were asked for, and a program would read it.
#[test]
fn json_holds_positive_finite_figures_for_every_model() {
    let (_folder, path) = written(&config());
    let small = repository().join("models/shakespeare-char-small");
    let arguments = ["--model", small.to_str().unwrap(), "--config", &path, "--json", "--new-tokens", "20"];
    let measures = ["--measure", "decode,context,batch,prefill,verbs", "--batches", "2"];
    let report = json_of(bench(program(), &[&arguments[..], &measures].concat()));
    let models = report["models"].as_array().unwrap();
    let described: Vec<_> =
        models.iter().map(|model| (&model["weights"], &model["check"]["equal"])).collect();
    assert_eq!(described, [(&json!("trained"), &json!(32)), (&json!("random"), &json!(32))]);
    // Of the trained model, prompts of 16, 64 and 256 tokens fit the context.
    for (model, prompts) in models.iter().zip([3, 1]) {
        assert!(
            model["device"] == "cpu, f32 (as asked)" && model["dtype"] == "f32" && model["new_tokens"] == 20
        );
        assert!(model["bandwidth_bytes_per_s"].as_f64().unwrap() > 1e6 && model["peers"].is_null());
        let rows = model["rows"].as_array().unwrap();
        for (measure, count) in
            [("decode", 1), ("context", 2), ("batch", 1), ("prefill", prompts), ("verbs", 5)]
        {
            assert_eq!(rows.iter().filter(|row| row["measure"] == measure).count(), count, "{measure}");
        }
        for row in rows {
            assert!(row["system"] == "touchstone" && row["repeats"] == 3, "{row}");
            assert!(
                row["median"].as_f64().unwrap() > 0.0 && row["p90"].as_f64() >= row["median"].as_f64(),
                "{row}"
            );
            let optional = ["tokens_per_s", "gflop_per_s", "bytes_per_s", "bandwidth_share", "times_first"];
            for field in optional.iter().filter_map(|name| row.get(name)) {
                let figure = field.as_f64().unwrap();
                assert!(figure > 0.0 && figure.is_finite(), "{row}");
            }
        }
    }
    let batch = models[1]["rows"].as_array().unwrap().iter().find(|row| row["measure"] == "batch").unwrap();
    let rate = batch["tokens_per_s"].as_f64().unwrap() * batch["median"].as_f64().unwrap();
    assert!((rate - 2e6).abs() < 1.0, "a step of a batch of 2 gives 2 tokens: {batch}");
}

/// Without this, the command alone, as the README shows it, could fail for want of a model.
#[test]
fn the_default_model_is_found() {
    let report = json_of(bench(program(), &["--json", "--measure", "decode", "--new-tokens", "2"]));
    assert_eq!(report["models"][0]["model"], "shakespeare-char");
}

/// Without this, a report of several configs could leave a model without a name.
#[test]
fn a_config_is_named_by_its_folder() {
    let (folder, path) = written(&config());
    for given in [path.as_str(), "config.json", "./config.json"] {
        let arguments = ["--config", given, "--json", "--measure", "decode", "--new-tokens", "1"];
        let mut command = bench(program(), &arguments);
        command.current_dir(folder.path());
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(json_of(command)["models"][0]["model"], name, "{given}");
    }
}

/// A copy of the small model whose numbers are finite, and their products are not.
fn overflowing() -> TempDir {
    let small = repository().join("models/shakespeare-char-small");
    let copy = tempfile::tempdir().unwrap();
    fs::copy(small.join("config.json"), copy.path().join("config.json")).unwrap();
    let mut bytes = fs::read(small.join("model.safetensors")).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // 1.7e38, in float32 and in bfloat16: each is finite, and no product of two.
    for pair in bytes[8 + header_bytes..].chunks_exact_mut(2) {
        pair.copy_from_slice(&[0x00, 0x7f]);
    }
    fs::write(copy.path().join("model.safetensors"), bytes).unwrap();
    copy
}

/// Without this, a model whose numbers are no numbers would be timed, and look fast.
#[test]
fn a_model_that_fails_its_check_exits_with_1() {
    let wrong = overflowing();
    let arguments = ["--model", wrong.path().to_str().unwrap()];
    refuses(&arguments, 1, &["nothing was timed", "the logits of token 1 are not finite"]);
}

/// The program under a second name, on the same file system, and no `prompt` beside it.
fn without_prompt() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(program().parent().unwrap()).unwrap();
    let copy = folder.path().join("touchstone");
    fs::hard_link(program(), &copy).unwrap();
    (folder, copy)
}

/// Without this, minutes of measuring could be lost to a later model or measurement that cannot be.
#[test]
fn what_was_measured_is_told_where_something_later_fails() {
    let (small, wrong) = (repository().join("models/shakespeare-char-small"), overflowing());
    let [small, wrong] = [&small, wrong.path()].map(|path| path.to_str().unwrap());
    let arguments =
        ["--json", "--new-tokens", "5", "--measure", "decode", "--model", small, "--model", wrong];
    let told = stopped(bench(program(), &arguments), 1, &["the logits of token 1 are not finite"]);
    let models = &serde_json::from_str::<Value>(&told).unwrap()["models"];
    assert!(models[0]["rows"][0]["measure"] == "decode" && models[1].is_null(), "{models}");
    let (folder, copy) = without_prompt();
    // The program's start is measured last: figures and picture are there.
    let svg = folder.path().join("x.svg");
    let arguments =
        ["--model", small, "--measure", "prefill,cold-start,decode", "--svg", svg.to_str().unwrap()];
    assert!(
        stopped(bench(&copy, &arguments), 2, &["prompt: cannot be started"]).contains("prefill  16 tokens")
    );
    assert!(svg.exists());
}

/// Without this, a mistake in a config would be timed as another model, or end in a panic.
#[test]
fn unusable_input_exits_with_2_and_is_named() {
    let (_folder, path) = written(&config());
    for (field, value) in [("num_attention_heads", json!(3)), ("hidden_size", json!(0))] {
        let mut wrong = config();
        wrong[field] = value;
        let (_folder, path) = written(&wrong);
        refuses(&["--config", &path], 2, &[&path, field]);
    }
    refuses(&["--config", "absent/config.json"], 2, &["cannot read absent/config.json: "]);
    refuses(&["--model", "absent"], 2, &["cannot read absent/config.json: "]);
    refuses(&["--config", &path, "--new-tokens", "40"], 2, &["--new-tokens", "40", "at most 39"]);
    refuses(&["--config", &path, "--dtype", "bf16"], 2, &["dtype: is bf16"]);
}

/// Without this, minutes of measuring could be lost to a mistyped path.
#[test]
fn a_picture_that_cannot_be_written_does_not_cost_the_figures() {
    let (_folder, path) = written(&config());
    let (code, stdout, stderr) =
        run(&["--config", &path, "--measure", "decode", "--svg", "/proc/absent/x.svg"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stdout.contains("decode"), "{stdout}");
    assert!(stderr.contains("/proc/absent/x.svg: cannot be written"), "{stderr}");
}

/// Without this, a pair of options that cannot work together would be found out after minutes of timing, or never.
#[test]
fn usage_that_cannot_work_exits_with_2() {
    let (_folder, path) = written(&config());
    refuses(&["--measure", "speed"], 2, &["speed"]);
    refuses(&["--repeats", "0"], 2, &[]);
    refuses(&["--batches", "1,0"], 2, &[]);
    refuses(&["--measure", "context,batch", "--peers"], 2, &["--peers", "decode, prefill and cold-start"]);
    refuses(&["--measure", "prefill", "--svg", "x.svg"], 2, &["--svg", "decode"]);
    refuses(&["--config", &path, "--measure", "cold-start"], 2, &["cold-start", "--config"]);
    refuses(&["--device", "cuda:1", "--peers"], 2, &["--peers", "CUDA_VISIBLE_DEVICES"]);
}

/// Without this, who asks where a decoder's time goes, and has none, would be told nothing.
#[test]
fn handoffs_of_what_has_none_exit_with_2() {
    let (_folder, path) = written(&config());
    refuses(
        &["--config", &path, "--measure", "handoffs"],
        2,
        &["--measure handoffs: ", "GPUs from Hopper on"],
    );
}

/// Without this, figures of the CPU could stand where a GPU was asked for.
#[test]
fn a_gpu_that_is_not_there_exits_with_3() {
    let (_folder, path) = written(&config());
    // No machine has a thousand.
    refuses(&["--config", &path, "--device", "cuda:999"], 3, &["touchstone: no CUDA device: "]);
}

/// Without this, the time of a program that never answered could be reported, or its way to its end be counted.
#[test]
fn cold_start_times_the_program_beside_it() {
    let small = repository().join("models/shakespeare-char-small");
    let (folder, copy) = without_prompt();
    let prompt = folder.path().join("prompt");
    let command = || bench(&copy, &["--model", small.to_str().unwrap(), "--measure", "cold-start", "--json"]);
    refused(command(), 2, &["cold-start: ", "prompt: cannot be started"]);
    symlink("/bin/false", &prompt).unwrap();
    refused(command(), 2, &["cold-start: ", "prompt: exit status: 1"]);
    fs::remove_file(&prompt).unwrap();
    fs::write(&prompt, "#!/bin/sh\necho x\nsleep 0.5\n").unwrap();
    fs::set_permissions(&prompt, fs::Permissions::from_mode(0o755)).unwrap();
    let report = json_of(command());
    let rows = report["models"][0]["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["measure"], &rows[0]["repeats"]), (1, &json!("cold-start"), &json!(3)));
    let median_us = rows[0]["median"].as_f64().unwrap();
    assert!(median_us > 100.0, "a process takes longer than 0.1 ms: {median_us} us");
    assert!(median_us < 500_000.0, "what follows the first byte is not counted: {median_us} us");
}

/// Names of the elements of an XML text, which must be nested rightly and hold no stray `<` or `&`.
fn elements(text: &str) -> Vec<String> {
    let (mut open, mut names) = (Vec::new(), Vec::new());
    for part in text.split('<').skip(1) {
        let (tag, content) = part.split_once('>').unwrap_or_else(|| panic!("no end of tag in {part:?}"));
        let known =
            ["&amp;", "&lt;", "&gt;"].iter().map(|entity| content.matches(entity).count()).sum::<usize>();
        assert_eq!(content.matches('&').count(), known, "a stray & in {content:?}");
        assert_eq!(tag.matches('"').count() % 2, 0, "an open attribute in {tag:?}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name), "closes what is not open"),
            None => {
                let name = tag.split([' ', '/']).next().unwrap().to_owned();
                names.push(name.clone());
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
    }
    assert_eq!(open, Vec::<String>::new(), "left open");
    names
}

/// Without this, a folder's name could break the picture, or a model be missing from it.
#[test]
fn the_picture_is_well_formed_and_has_a_point_for_each_model() {
    let (folder, path) = written(&config());
    let mut larger = config();
    larger["hidden_size"] = json!(64);
    let (_larger, second) = written(&larger);
    let svg = folder.path().join("x.svg");
    let arguments =
        ["--config", &path, "--config", &second, "--measure", "decode", "--svg", svg.to_str().unwrap()];
    let (code, _, stderr) = run(&arguments);
    assert_eq!(code, 0, "{stderr}");
    let text = fs::read_to_string(svg).unwrap();
    let names = elements(&text);
    let count = |name: &str| names.iter().filter(|found| *found == name).count();
    // A point a model and one in the legend; the limit is one line.
    assert_eq!((names[0].as_str(), count("circle"), count("polyline")), ("svg", 3, 1), "{text}");
    assert_eq!(text.matches("bandwidth limit").count(), 1);
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
}
