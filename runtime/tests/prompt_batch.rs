//! `prompt --batch` from the outside: every line of the file is answered as if it were alone, and a wrong one is named.

mod common;

use std::fs;

use common::{TinyModel, fails, prompt, run, stderr, text, with_stdin};
use serde_json::Value;

/// Lines of a batch that differ in everything, a blank one among them, and for each that is none the arguments that ask for it alone.
const BATCH: [(&str, &[&str]); 6] = [
    (r#"{"prompt": "abc"}"#, &["abc"]),
    (
        r#"{"prompt": "é", "seed": 18446744073709551615, "temperature": 2}"#,
        &["é", "--seed", "18446744073709551615", "--temperature", "2"],
    ),
    ("  ", &[]),
    (
        r#"{"prompt": "a\nb 語", "max_new_tokens": 3, "top_k": 0}"#,
        &["a\nb 語", "--max-new-tokens", "3", "--top-k", "0"],
    ),
    (
        r#"{"max_new_tokens": 61, "prompt": "ab", "temperature": 0}"#,
        &["ab", "--max-new-tokens", "61", "--greedy"],
    ),
    (
        r#"{"prompt": "abcabcabcabcabcabc", "max_new_tokens": 1, "top_p": 0.5, "temperature": 1.5}"#,
        &["abcabcabcabcabcabc", "--max-new-tokens", "1", "--top-p", "0.5", "--temperature", "1.5"],
    ),
];

/// Without this, a prompt of a batch could get another's settings, or a text that it would not get alone, or be lost.
#[test]
fn a_batch_answers_each_line_as_if_it_were_alone() {
    let dir = TinyModel::new().write();
    let common = ["--seed", "5", "--max-new-tokens", "20", "--top-p", "0.9"];
    let file = dir.path().join("batch.jsonl");
    let path = file.to_str().unwrap();
    fs::write(&file, BATCH.map(|(line, _)| line).join("\n")).unwrap();
    // A flag that comes twice is an error: the line's own stand in for the common ones.
    let alone = |arguments: &[&str]| {
        let kept = common.chunks(2).filter(|pair| !arguments.contains(&pair[0])).flatten().copied();
        text(prompt(dir.path(), &arguments.iter().copied().chain(kept).collect::<Vec<_>>()))
    };
    let mut expected = String::new();
    let mut texts = Vec::new();
    for (number, (_, arguments)) in (1..).zip(BATCH).filter(|(_, (_, arguments))| !arguments.is_empty()) {
        let text = alone(arguments);
        let end = if text.ends_with('\n') { "" } else { "\n" };
        expected += &format!("--- line {number}\n{text}{end}");
        texts.push((number, arguments[0], text));
    }
    assert_eq!(text(prompt(dir.path(), &[&["--batch", path], &common[..]].concat())), expected);
    let piped = prompt(dir.path(), &[&["--batch", "-"], &common[..]].concat());
    assert_eq!(text(with_stdin(piped, &fs::read(&file).unwrap())), expected);

    let output = run(prompt(dir.path(), &[&["--batch", path, "--json"], &common[..]].concat()));
    let json: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let answers = json["prompts"].as_array().unwrap();
    assert_eq!((answers.len(), json["interrupted"].as_bool()), (texts.len(), Some(false)));
    for (answer, (line, asked, text)) in answers.iter().zip(&texts) {
        assert_eq!(
            (&answer["line"], &answer["prompt"], &answer["text"]),
            (&(*line).into(), &(*asked).into(), &text.as_str().into())
        );
        assert_eq!(
            answer["tokens"].as_array().unwrap().len(),
            answer["max_new_tokens"].as_u64().unwrap() as usize
        );
    }
    let setting = |line: usize, field: &str| answers[line][field].clone();
    assert_eq!((setting(1, "seed"), setting(2, "seed")), (u64::MAX.into(), 5.into()));
    assert_eq!(
        (setting(2, "top_k"), setting(1, "top_k"), setting(1, "temperature")),
        (0.into(), 40.into(), 2.0.into())
    );
    assert_eq!(json["stats"]["tokens"], 20 + 20 + 3 + 61 + 1);
}

/// Without this, prompts beyond those that run at once could be lost, or come in another order.
#[test]
fn a_long_batch_is_answered_in_turns() {
    let dir = TinyModel::new().write();
    let file = dir.path().join("batch.jsonl");
    let line =
        |seed: usize| format!("{{\"prompt\": \"{}\", \"seed\": {seed}}}\n", "abc".repeat(1 + seed % 5));
    fs::write(&file, (0..130).map(line).collect::<String>()).unwrap();
    let path = file.to_str().unwrap();
    let text = text(prompt(dir.path(), &["--batch", path, "--max-new-tokens", "14", "--echo"]));
    let texts: Vec<&str> = text.split("--- line ").skip(1).collect();
    assert_eq!(texts.len(), 130);
    for (seed, found) in texts.into_iter().enumerate() {
        let asked = "abc".repeat(1 + seed % 5);
        assert!(found.starts_with(&format!("{}\n{asked}", seed + 1)), "{found:?}");
        if seed % 43 == 0 {
            let seed = seed.to_string();
            let alone = self::text(prompt(dir.path(), &[&asked, "--seed", &seed, "--max-new-tokens", "14"]));
            assert_eq!(
                found.trim_end_matches('\n').split_once('\n').unwrap().1,
                format!("{asked}{alone}").trim_end_matches('\n')
            );
        }
    }
    let output = run(prompt(dir.path(), &["--batch", path, "--max-new-tokens", "14", "--stats"]));
    let message = stderr(&output);
    for part in ["130 prompts, 44 at once", "1820 tokens", "tokens/s", "memory "] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// Without this, a mistake in a batch could be found after half of it has run, or leave the user to search for it.
#[test]
fn a_bad_batch_exits_with_4_and_names_file_line_and_field() {
    let dir = TinyModel::new().write();
    let file = dir.path().join("batch.jsonl");
    let case = |line: &str, parts: &[&str]| {
        fs::write(&file, format!("{{\"prompt\": \"a\"}}\n\n{line}\n{{\"prompt\": \"b\"}}\n")).unwrap();
        fails(
            prompt(dir.path(), &["--batch", file.to_str().unwrap()]),
            4,
            &[&["batch.jsonl: line 3: "], parts].concat(),
        );
    };
    case("abc", &["column 1: expected value, expected one JSON object"]);
    case(r#"["a"]"#, &["expected"]);
    case(r#"{"prompt": "a"} {"prompt": "b"}"#, &["column 17: trailing characters"]);
    case(
        r#"{"prompt": "a", "top-k": 3}"#,
        &["unknown field `top-k`, expected one of `prompt`, `max_new_tokens`"],
    );
    case(r#"{"seed": 3}"#, &["missing field `prompt`"]);
    case(r#"{"prompt": "a", "prompt": "b"}"#, &["duplicate field `prompt`"]);
    case(r#"{"prompt": ""}"#, &[r#"prompt: is "", expected a text of at least one character"#]);
    case(r#"{"prompt": 5}"#, &["prompt: is 5, expected a text"]);
    case(r#"{"prompt": "abx"}"#, &["prompt: character 'x' (U+0078) at position 2"]);
    case(
        r#"{"prompt": "a", "max_new_tokens": 0}"#,
        &["max_new_tokens: is 0, expected a whole number from 1 to 4294967295"],
    );
    case(
        r#"{"prompt": "a", "max_new_tokens": "7"}"#,
        &[r#"max_new_tokens: is "7", expected a whole number"#],
    );
    case(
        r#"{"prompt": "a", "seed": -1}"#,
        &["seed: is -1, expected a whole number from 0 to 18446744073709551615"],
    );
    case(
        r#"{"prompt": "a", "seed": 18446744073709551616}"#,
        &["seed: is 1.8446744073709552e+19, expected a whole"],
    );
    case(r#"{"prompt": "a", "top_k": 1.5}"#, &["top_k: is 1.5, expected a whole number"]);
    case(r#"{"prompt": "a", "temperature": -1}"#, &["temperature: is -1, expected 0 (greedy)"]);
    case(r#"{"prompt": "a", "temperature": "hot"}"#, &[r#"temperature: is "hot", expected a number"#]);
    case(r#"{"prompt": "a", "top_p": 0}"#, &["top_p: is 0, expected more than 0 and at most 1"]);
    for nothing in ["", "\n \n"] {
        fs::write(&file, nothing).unwrap();
        let parts = ["batch.jsonl: line 1: is missing, expected a JSON object with a prompt"];
        fails(prompt(dir.path(), &["--batch", file.to_str().unwrap()]), 4, &parts);
    }
    fs::write(&file, b"{\"prompt\": \"\xE9\"}").unwrap();
    fails(
        prompt(dir.path(), &["--batch", file.to_str().unwrap()]),
        4,
        &["batch.jsonl: byte 12: is not UTF-8"],
    );
    fails(prompt(dir.path(), &["--batch", "/no/such/file"]), 4, &["cannot read", "/no/such/file"]);
    fails(
        with_stdin(prompt(dir.path(), &["--batch", "-"]), b"{"),
        4,
        &["standard input: line 1: column 1: EOF"],
    );
    let case = |arguments: &[&str], parts: &[&str]| {
        fails(prompt(dir.path(), &[&["--batch", "x"], arguments].concat()), 2, parts);
    };
    case(&["a"], &["--batch", "cannot be used with"]);
    case(&["--file", "x"], &["--batch", "cannot be used with"]);
    case(&["--interactive"], &["--batch", "cannot be used with"]);
    case(&["--num-samples", "2"], &["num-samples: is 2, expected 1 with --batch"]);
}
