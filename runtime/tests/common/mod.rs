//! A tiny model on disk, that a test may damage before it is read; and the `prompt` program, run on it.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use touchstone_runtime::Config;
use touchstone_runtime::plan;
use touchstone_runtime::weights::{RandomWeights, Values, WeightSource};

/// Every token of the tiny vocabulary; two are not ASCII.
pub const VOCABULARY: [&str; 7] = ["\n", " ", "a", "b", "c", "é", "語"];

/// The positions that the tiny model knows.
pub const CONTEXT: usize = 12;

/// A tensor of the file: dtype, shape and bytes.
pub type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// What will be written, open to changes.
pub struct TinyModel {
    pub config: Value,
    pub tokenizer: Value,
    pub tensors: BTreeMap<String, Stored>,
}

impl TinyModel {
    /// A model that is in order, stored in float32.
    pub fn new() -> Self {
        let config = json!({
            "vocab_size": VOCABULARY.len(), "max_position_embeddings": CONTEXT, "hidden_size": 8, "num_attention_heads": 2,
            "intermediate_size": 20, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
            "tie_word_embeddings": true, "model_type": "touchstone_gpt", "dtype": "float32"
        });
        let parsed = Config::parse(&config.to_string(), Path::new("config.json")).unwrap();
        let tensors = plan::weights(&parsed).into_iter().map(|entry| {
            let values = floats(&entry.name, &entry.shape);
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (entry.name, (Dtype::F32, entry.shape, bytes))
        });
        Self { tensors: tensors.collect(), tokenizer: tokenizer(&VOCABULARY), config }
    }

    /// The same, stored in bfloat16.
    pub fn bf16() -> Self {
        let mut model = Self::new();
        model.config["dtype"] = json!("bfloat16");
        for (name, (dtype, shape, bytes)) in &mut model.tensors {
            let values = floats(name, shape).into_iter().map(half::bf16::from_f32);
            (*dtype, *bytes) = (Dtype::BF16, values.flat_map(half::bf16::to_le_bytes).collect());
        }
        model
    }

    /// The bytes of `model.safetensors`.
    pub fn file(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
    }

    /// Writes the folder.
    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        fs::write(dir.path().join("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        fs::write(dir.path().join("model.safetensors"), self.file()).unwrap();
        dir
    }
}

/// A character tokenizer as the trained models have it.
pub fn tokenizer(vocabulary: &[&str]) -> Value {
    let vocab: serde_json::Map<_, _> =
        vocabulary.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    })
}

/// The values that the tiny model's tensor `name` holds.
pub fn floats(name: &str, shape: &[usize]) -> Vec<f32> {
    match RandomWeights::new(11).tensor(name, shape).unwrap().values {
        Values::F32(values) => values.into_owned(),
        other => panic!("expected float32, got {other:?}"),
    }
}

/// The program, far from this machine's settings, with the model in `dir`, on the CPU.
pub fn prompt(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = bare(arguments);
    command.arg("--model").arg(dir).args(["--device", "cpu"]);
    command
}

/// The program with these arguments alone.
pub fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prompt"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TOUCHSTONE_"))
    {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end.
pub fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

/// What went to standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text is UTF-8")
}

/// What went to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

/// The text of a run that must succeed.
pub fn text(command: Command) -> String {
    let output = run(command);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

/// Asserts that a run fails with this code and one message that holds all of `parts`, without having written text.
pub fn fails(command: Command, code: i32, parts: &[&str]) {
    let shown = format!("{command:?}");
    let output = run(command);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{shown}: {message}");
    assert_eq!(stdout(&output), "", "{shown}");
    assert!(message.lines().any(|line| line.starts_with("prompt: ")), "{shown}: {message}");
    assert!(!message.contains("panicked"), "{shown}: {message}");
    for part in parts {
        assert!(message.contains(part), "{shown}: {part:?} is not in {message:?}");
    }
}

/// `stdin` for a command: the program gets these bytes.
pub fn with_stdin(mut command: Command, bytes: &[u8]) -> Command {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    command.stdin(file);
    command
}
