//! The `prompt` program from the outside: text on standard output, everything else on standard error, exit codes. What happens while it
//! runs (streams, signals) is in `prompt_process.rs`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{CONTEXT, TinyModel, bare, fails, prompt, run, stderr, stdout, text, tokenizer, with_stdin};
use serde_json::Value;

/// Without this, a seed would not reproduce a text, or would not matter.
#[test]
fn one_seed_gives_one_text() {
    let dir = TinyModel::new().write();
    let text = |seed| text(prompt(dir.path(), &["abc", "--max-new-tokens", "60", "--seed", seed]));
    let first = text("1");
    assert_eq!(first, text("1"));
    assert_ne!(first, text("2"));
    assert_eq!(first.chars().count(), 60, "one character a token, none lost: {first:?}");
}

/// Without this, a random seed could be used and never be known: the text could not be had again.
#[test]
fn a_random_seed_is_printed_and_gives_the_same_text_again() {
    let dir = TinyModel::new().write();
    let output = run(prompt(dir.path(), &["a"]));
    let message = stderr(&output);
    let seed =
        message.split("seed ").nth(1).and_then(|rest| rest.split(',').next()).expect("a seed is printed");
    assert_eq!(stdout(&output), text(prompt(dir.path(), &["a", "--seed", seed])));
    assert_ne!(stdout(&run(prompt(dir.path(), &["a"]))), stdout(&output), "the seed is random");
}

/// Without this, the ways to ask for greedy decoding could differ, or depend on the seed.
#[test]
fn greedy_repeats_whatever_the_seed() {
    let dir = TinyModel::bf16().write();
    let text = |arguments: &[&str]| {
        text(prompt(dir.path(), &[&["é語", "--max-new-tokens", "30"], arguments].concat()))
    };
    let greedy = text(&["--greedy"]);
    assert_eq!(greedy, text(&["--greedy", "--seed", "9", "--temperature", "2"]));
    assert_eq!(greedy, text(&["--temperature", "0", "--seed", "3"]));
    assert_eq!(greedy, text(&["--top-k", "1", "--seed", "4"]));
}

/// Without this, a path could go its own way.
#[test]
fn every_path_writes_the_same_text() {
    let dir = TinyModel::new().write();
    let text =
        |path| text(prompt(dir.path(), &["ab", "--seed", "5", "--max-new-tokens", "40", "--path", path]));
    let fastest = text("fastest");
    assert_eq!(fastest.chars().count(), 40);
    assert_eq!(fastest, text("steps"));
    assert_eq!(fastest, text("plain"));
    fails(prompt(dir.path(), &["ab", "--path", "fast"]), 2, &["--path", "fastest"]);
}

/// Without this, generation could stop, fail or change where the context ends.
#[test]
fn text_goes_on_past_the_context() {
    let dir = TinyModel::new().write();
    let text = |tokens: usize| {
        text(prompt(dir.path(), &["ab", "--seed", "7", "--max-new-tokens", &tokens.to_string()]))
    };
    let long = text(4 * CONTEXT);
    assert_eq!(long.chars().count(), 4 * CONTEXT);
    let short: String = text(CONTEXT / 2);
    assert!(long.starts_with(&short), "{short:?} does not begin {long:?}");
    // A prompt longer than the context counts by its end.
    let continued = |text_before: &str| {
        self::text(prompt(dir.path(), &[text_before, "--seed", "1", "--max-new-tokens", "9"]))
    };
    let end = "ab".repeat(CONTEXT / 2);
    assert_eq!(continued(&format!("cc{end}")), continued(&end));
}

/// Without this, a flag, its variable and the default could take each other's place.
#[test]
fn a_flag_counts_over_its_variable_and_that_over_the_default() {
    let dir = TinyModel::new().write();
    let run = |variable: Option<&str>, flag: &[&str]| {
        let mut command = prompt(dir.path(), &[&["a"], flag].concat());
        command.envs(variable.map(|value| ("TOUCHSTONE_MAX_NEW_TOKENS", value)));
        text(command).chars().count()
    };
    assert_eq!(run(None, &[]), 240);
    assert_eq!(run(Some("20"), &[]), 20);
    assert_eq!(run(Some("20"), &["--max-new-tokens", "3"]), 3);
    let mut command = bare(&["a", "--device", "cpu", "--max-new-tokens", "2"]);
    command.env("TOUCHSTONE_MODEL", dir.path());
    assert_eq!(text(command).chars().count(), 2);
}

/// Without this, a prompt could change on its way in: from a file, from standard input, or by an end of line.
#[test]
fn a_prompt_is_the_same_from_wherever_it_comes() {
    let dir = TinyModel::new().write();
    let file = dir.path().join("prompt.txt");
    fs::write(&file, "ab é\n").unwrap();
    let common = ["--seed", "1", "--max-new-tokens", "20"];
    let given = text(prompt(dir.path(), &[&["ab é\n"], &common[..]].concat()));
    assert_ne!(given, text(prompt(dir.path(), &[&["ab é"], &common[..]].concat())), "the line end counts");
    let path = file.to_str().unwrap();
    assert_eq!(given, text(prompt(dir.path(), &[&["--file", path], &common[..]].concat())));
    for arguments in [&["-"][..], &["--file", "-"], &[]] {
        let command = prompt(dir.path(), &[arguments, &common].concat());
        assert_eq!(given, text(with_stdin(command, "ab é\n".as_bytes())), "{arguments:?}");
    }
    let echoed = text(prompt(dir.path(), &[&["ab é\n", "--echo"], &common[..]].concat()));
    assert_eq!(echoed, format!("ab é\n{given}"));
}

/// Without this, `--json` could lose text, tokens or settings, or mix with the stream; and samples could be equal.
#[test]
fn json_holds_what_was_asked_and_what_came() {
    let dir = TinyModel::new().write();
    let common = ["abc", "--seed", "5", "--max-new-tokens", "20", "--num-samples", "2"];
    let output = run(prompt(dir.path(), &[&common[..], &["--json"]].concat()));
    let json: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let samples = json["samples"].as_array().unwrap();
    assert_eq!(
        (json["prompt"].as_str(), json["max_new_tokens"].as_u64(), samples.len()),
        (Some("abc"), Some(20), 2)
    );
    assert_eq!(json["interrupted"], false);
    for (i, sample) in samples.iter().enumerate() {
        assert_eq!(sample["seed"], 5 + i);
        assert_eq!(sample["tokens"].as_array().unwrap().len(), 20);
        let seed = (5 + i).to_string();
        let alone = text(prompt(dir.path(), &["abc", "--max-new-tokens", "20", "--seed", &seed]));
        assert_eq!(sample["text"], alone, "sample {i} is what its seed gives alone");
        assert!(sample["stats"]["decode_us"].as_f64().unwrap() > 0.0);
    }
    let streamed = text(prompt(dir.path(), &common));
    let [a, b] = [&samples[0], &samples[1]].map(|sample| sample["text"].as_str().unwrap());
    let end = if a.ends_with('\n') { "" } else { "\n" };
    assert_eq!(streamed, format!("{a}{end}---\n{b}"));
}

/// Without this, figures could land in the text, or be missing.
#[test]
fn stats_are_on_standard_error() {
    let dir = TinyModel::new().write();
    let output = run(prompt(dir.path(), &["ab", "--stats", "--seed", "1", "--max-new-tokens", "30"]));
    assert_eq!(stdout(&output), text(prompt(dir.path(), &["ab", "--seed", "1", "--max-new-tokens", "30"])));
    let message = stderr(&output);
    let parts = [
        "load ",
        "prefill ",
        "(2 tokens)",
        "first token after ",
        "30 tokens",
        "tokens/s",
        "us a token",
        "past the context",
    ];
    for part in parts.iter().chain(&["of the bandwidth limit", "memory "]) {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// Without this, a session could end at the first wrong prompt, or lose the lines after it.
#[test]
fn a_session_answers_line_by_line_and_survives_a_wrong_prompt() {
    let dir = TinyModel::new().write();
    let command = prompt(dir.path(), &["--interactive", "--greedy", "--max-new-tokens", "4"]);
    let output = run(with_stdin(command, b"ab\n\nx\na\\\nb\n"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answers = ["ab", "a\nb"].map(|asked| {
        let answer = text(prompt(dir.path(), &[asked, "--greedy", "--max-new-tokens", "4"]));
        if answer.ends_with('\n') { answer } else { answer + "\n" }
    });
    assert_eq!(stdout(&output), answers.concat());
    assert!(stderr(&output).contains("character 'x' (U+0078) at position 0"), "{}", stderr(&output));
}

/// Without this, a mistake on the command line could be taken for something else, or be met with a stack trace.
#[test]
fn wrong_usage_exits_with_2_and_names_the_thing() {
    let dir = TinyModel::new().write();
    let case = |arguments: &[&str], parts: &[&str]| fails(prompt(dir.path(), arguments), 2, parts);
    case(&[""], &["the prompt: is empty"]);
    case(&["ab🦀c"], &["'🦀' (U+1F980) at position 2"]);
    case(&["a", "--max-new-tokens", "0"], &["max-new-tokens: is 0, expected at least 1"]);
    case(&["a", "--num-samples", "0"], &["num-samples: is 0, expected at least 1"]);
    case(&["a", "--max-new-tokens", "many"], &["--max-new-tokens", "many"]);
    case(&["a", "--temperature", "-1"], &["temperature: is -1, expected 0 (greedy)"]);
    case(&["a", "--temperature", "nan"], &["temperature: is NaN"]);
    case(&["a", "--temperature", "inf"], &["temperature: is inf"]);
    case(&["a", "--top-p", "0"], &["top-p: is 0, expected more than 0 and at most 1"]);
    case(&["a", "--top-p", "1.5"], &["top-p: is 1.5"]);
    case(&["a", "--top-k", "-1"], &["--top-k"]);
    case(&["a", "--dtype", "f16"], &["--dtype", "f16", "f32", "bf16"]);
    case(&["a", "--dtype", "bf16"], &["dtype: is bf16, expected f32 or auto on the CPU"]);
    case(&["a", "--seed", "-1"], &["--seed"]);
    case(&["a", "--threads", "0"], &["--threads", "1..=1024"]);
    case(&["a", "--threads", "1000000"], &["--threads", "1..=1024"]);
    case(&["a", "--file", "x"], &["--file"]);
    case(&["a", "--frobnicate"], &["--frobnicate"]);
    case(&["--frobnicate"], &["--frobnicate"]);
    fails(bare(&["a", "--device", "tpu"]), 2, &["--device", "tpu", "expected auto, cpu, cuda or cuda:N"]);
    fails(prompt(dir.path(), &[]), 2, &["standard input", "is empty"]);
}

/// Without this, somebody who asked for a GPU could wait for the CPU's answer.
#[test]
fn no_gpu_exits_with_3() {
    let dir = TinyModel::new().write();
    for device in ["cuda", "cuda:0"] {
        let mut command = bare(&["a", "--device", device]);
        command.arg("--model").arg(dir.path()).env("CUDA_VISIBLE_DEVICES", "");
        fails(command, 3, &["no CUDA device: "]);
    }
    let mut command = bare(&["a", "--max-new-tokens", "1"]);
    command.arg("--model").arg(dir.path()).env("CUDA_VISIBLE_DEVICES", "");
    let output = run(command);
    assert_eq!(output.status.code(), Some(0), "auto goes on without one: {}", stderr(&output));
    assert!(stderr(&output).contains("cpu, f32 (no GPU: "), "and says why: {}", stderr(&output));
}

/// Without this, a broken model folder could run, panic, or leave the user to guess which file is meant.
#[test]
fn a_bad_model_exits_with_4_and_names_file_and_field() {
    let case = |change: &dyn Fn(&mut TinyModel), parts: &[&str]| {
        let mut model = TinyModel::new();
        change(&mut model);
        fails(prompt(model.write().path(), &["a"]), 4, parts);
    };
    case(&|m| m.config["n_layer"] = 1.into(), &["config.json", "unknown field `n_layer`"]);
    case(
        &|m| m.config["max_position_embeddings"] = 0.into(),
        &["config.json: max_position_embeddings: is 0"],
    );
    case(
        &|m| drop(m.tensors.remove("final_norm.bias")),
        &["model.safetensors: final_norm.bias: is missing, expected shape [8]"],
    );
    case(
        &|m| m.tensors.get_mut("final_norm.bias").unwrap().1 = vec![4, 2],
        &["final_norm.bias: has shape [4, 2], expected [8]"],
    );
    case(
        &|m| m.tensors.get_mut("final_norm.bias").unwrap().2[..4].fill(0xFF),
        &["final_norm.bias: holds NaN at index 0"],
    );
    case(&|m| m.tokenizer = tokenizer(&["a", "b"]), &["tokenizer.json: vocab: has 2 tokens, expected 7"]);
    case(
        &|m| m.tokenizer = serde_json::json!({}),
        &["tokenizer.json: tokenizer: not a Hugging Face tokenizer"],
    );
    let dir = TinyModel::new().write();
    fs::write(dir.path().join("model.safetensors"), &TinyModel::new().file()[..900]).unwrap();
    fails(prompt(dir.path(), &["a"]), 4, &["model.safetensors: header: "]);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("model.safetensors"), TinyModel::new().file()).unwrap();
    fails(prompt(dir.path(), &["a"]), 4, &["cannot read", "tokenizer.json", "No such file"]);
    fails(prompt(Path::new("/no/such/folder"), &["a"]), 4, &["cannot read", "/no/such/folder/config.json"]);
    fails(prompt(dir.path(), &["--file", "/no/such/file"]), 4, &["cannot read", "/no/such/file"]);
    fs::write(dir.path().join("latin1.txt"), b"ab\xE9").unwrap();
    let latin1 = dir.path().join("latin1.txt");
    fails(
        prompt(dir.path(), &["--file", latin1.to_str().unwrap()]),
        4,
        &["latin1.txt: byte 2: is not UTF-8 text"],
    );
    let mut command = bare(&["a"]);
    command.env("TOUCHSTONE_ROOT", dir.path());
    fails(command, 4, &["shakespeare-char", "not found below TOUCHSTONE_ROOT; pass --model DIR"]);
}

/// Without this, the trained model could write something else than the reference does: its card quotes the reference's greedy text.
#[test]
fn the_trained_model_writes_what_its_card_quotes() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/shakespeare-char-small");
    let Ok(card) = fs::read_to_string(dir.join("README.md")) else {
        return eprintln!("not checked: {} is not there", dir.display());
    };
    let quoted = card
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("\n```").next())
        .expect("the card quotes a text");
    let tokens = (quoted.chars().count() + 1).to_string();
    // However many threads share its work.
    for threads in ["1", "2", "5"] {
        let command = prompt(&dir, &["\n", "--greedy", "--threads", threads, "--max-new-tokens", &tokens]);
        // The card quotes the text without the line end that it begins with.
        assert_eq!(text(command), format!("\n{quoted}"), "{threads} threads");
    }
}
