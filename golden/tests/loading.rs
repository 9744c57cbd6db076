//! A case that is not exactly what the format says must be refused, with the file and the field named.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use touchstone_golden::{Case, Feed, Ours, Role, Rule, Standard, judge};

/// A `.npy` file of version 1.0.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), data].concat()
}

fn f32_npy(shape: &str, values: &[f32]) -> Vec<u8> {
    npy("<f4", shape, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

fn f64_npy(shape: &str, values: &[f64]) -> Vec<u8> {
    npy("<f8", shape, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

/// Writes a file and returns its `file` and `sha256` fields.
fn put(dir: &Path, file: &str, bytes: &[u8]) -> Value {
    std::fs::write(dir.join(file), bytes).unwrap();
    let sha256: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    json!({"file": file, "sha256": sha256})
}

/// Merges the fields of two objects.
fn merge(mut a: Value, b: Value) -> Value {
    a.as_object_mut().unwrap().append(&mut b.as_object().unwrap().clone());
    a
}

/// A folder with a good case: an input, a gated output with both truths, and a greedy output with margins.
fn good() -> (tempfile::TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let values = [1.0f32, -2.0, 3.5, 0.25, 7.0, -0.5];
    let wide = values.map(f64::from);
    let entry = |role: &str, dtype: &str, files: Value| {
        merge(json!({"role": role, "dtype": dtype, "shape": [2, 3]}), files)
    };
    let ids: Vec<u8> = (0..6u32).flat_map(u32::to_le_bytes).collect();
    let truth = put(d, "y.truth.npy", &f64_npy("(2, 3)", &wide));
    let injected = put(d, "y.injected.npy", &f64_npy("(2, 3)", &wide));
    let y = entry("output", "bf16", put(d, "y.npy", &f32_npy("(2, 3)", &values)));
    let tokens = entry("output", "u32", put(d, "tokens.npy", &npy("<u4", "(2, 3)", &ids)));
    let manifest = json!({
        "format": 1, "op": "copy", "case": "good_bf16", "dtype": "bf16", "seed": 17, "config": {"eps": 1e-5},
        "tensors": {
            "x": entry("input", "f32", put(d, "x.npy", &f32_npy("(2, 3)", &values))),
            "y": merge(y, json!({"truth": truth, "injected": injected})),
            "tokens": merge(tokens, json!({"rule": "greedy", "margins": "lead"})),
            "lead": entry("margin", "f64", put(d, "lead.npy", &f64_npy("(2, 3)", &[0.5; 6]))),
        },
        "generator": {"torch": "2.11.0", "numpy": "2.0.0", "script_sha256": "00"},
    });
    write(d, &manifest);
    (dir, manifest)
}

fn write(dir: &Path, manifest: &Value) {
    std::fs::write(dir.join("case.json"), manifest.to_string()).unwrap();
}

/// The error of loading `dir`.
fn refusal(dir: &Path) -> String {
    Case::load(dir).map(|case| case.name).expect_err("must be refused").to_string()
}

/// Without this, a reader that refuses everything would pass the tests below.
#[test]
fn reads_a_good_case() {
    let (dir, _) = good();
    let case = Case::load(dir.path()).unwrap();
    assert_eq!((case.op.as_str(), case.name.as_str(), case.seed), ("copy", "good_bf16", 17));
    let operands: Vec<_> = case.operands().map(|(name, role, _)| (name.to_owned(), role)).collect();
    assert_eq!(operands, [("x".to_owned(), Role::Input)]);
    assert_eq!(case.operands().next().unwrap().2.values, [1.0, -2.0, 3.5, 0.25, 7.0, -0.5]);
    let y = case.output("y").unwrap();
    assert_eq!(y.truth.as_ref().unwrap()[2], 3.5);
    assert_eq!(case.output("tokens").unwrap().rule, Rule::Greedy { margins: vec![0.5; 6] });
    let ours = Ours { shape: &[2, 3], values: &y.reference.values };
    assert!(judge(ours, y, Feed::Injected, Standard::Reference).verdict.passed());
}

/// Without this, a misspelt or a contradictory `case.json` would be read as something that it does not say.
#[test]
fn refuses_every_contradiction_in_the_manifest_and_names_the_field() {
    let changes: &[(&str, Value, &str)] = &[
        ("/format", json!(2), "format: is 2, expected 1"),
        ("/dtype", json!("f16"), "unknown variant `f16`"),
        ("/seed", json!(-1), "invalid value: integer `-1`"),
        ("/surplus", json!(1), "unknown field `surplus`"),
        ("/tensors", json!({}), "hold no output"),
        ("/tensors/x/surplus", json!(1), "unknown field `surplus`"),
        ("/tensors/x/role", json!("weight"), "unknown variant `weight`"),
        ("/tensors/x/dtype", json!("f64"), "tensors.x.dtype"),
        ("/tensors/x/dtype", json!("u32"), "x.npy: dtype: is <f4, and case.json expects <u4"),
        ("/tensors/x/shape", json!([3, 2]), "x.npy: shape: is [2, 3], and case.json expects [3, 2]"),
        ("/tensors/x/shape", json!([6]), "x.npy: shape"),
        ("/tensors/x/shape", json!([0, 3]), "tensors.x.shape"),
        ("/tensors/x/shape", json!([1, 1, 1, 1, 1, 1, 1, 2, 3]), "tensors.x.shape"),
        ("/tensors/x/shape", json!([4_294_967_296u64, 4_294_967_296u64]), "tensors.x.shape"),
        ("/tensors/x/file", json!("../x.npy"), "tensors.x.file"),
        ("/tensors/x/file", json!("/etc/hostname"), "tensors.x.file"),
        ("/tensors/x/file", json!(".."), "tensors.x.file"),
        ("/tensors/x/file", json!(""), "tensors.x.file"),
        ("/tensors/x/file", json!("absent.npy"), "absent.npy: cannot be read"),
        ("/tensors/x/sha256", json!("00"), "tensors.x.sha256"),
        ("/tensors/x/rule", json!("exact"), "tensors.x.rule"),
        ("/tensors/x/truth", json!({"file": "y.truth.npy", "sha256": "00"}), "tensors.x.truth"),
        ("/tensors/y/truth", Value::Null, "tensors.y.truth: is missing"),
        ("/tensors/y/truth/file", json!("x.npy"), "tensors.y.truth.sha256"),
        ("/tensors/y/injected/sha256", json!("11"), "tensors.y.injected.sha256"),
        ("/tensors/y/rule", json!("close"), "unknown variant `close`"),
        ("/tensors/y/rule", json!("greedy"), "tensors.y.rule"),
        ("/tensors/y/margins", json!("lead"), "tensors.y.margins"),
        ("/tensors/tokens/rule", Value::Null, "tensors.tokens.rule"),
        ("/tensors/tokens/margins", Value::Null, "tensors.tokens.margins"),
        ("/tensors/tokens/margins", json!("x"), "tensors.tokens.margins: names \"x\""),
        ("/generator/numpy", Value::Null, "invalid type: null"),
    ];
    for (pointer, value, expected) in changes {
        let (dir, mut manifest) = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        manifest.pointer_mut(parent).unwrap()[key] = value.clone();
        write(dir.path(), &manifest);
        let message = refusal(dir.path());
        assert!(message.contains(expected), "{pointer} = {value}: {message}");
        assert!(message.contains(dir.path().to_str().unwrap()), "names no file: {message}");
    }
}

/// Without this, the second of two entries of one name would silently replace the first.
#[test]
fn refuses_a_tensor_that_comes_twice() {
    let (dir, manifest) = good();
    let text = manifest.to_string();
    let entry = manifest["tensors"]["x"].to_string();
    let doubled = text.replacen("\"tensors\":{", &format!("\"tensors\":{{\"x\":{entry},"), 1);
    std::fs::write(dir.path().join("case.json"), doubled).unwrap();
    assert!(refusal(dir.path()).contains("tensor \"x\" comes twice"));
}

/// Without this, a damaged file could be compared as if it were the reference.
#[test]
fn refuses_every_changed_byte_and_every_cut() {
    let (dir, _) = good();
    for file in ["x.npy", "y.npy", "y.truth.npy", "y.injected.npy", "tokens.npy", "lead.npy"] {
        let path = dir.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        for index in [0, 7, 9, 20, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(refusal(dir.path()).contains("sha256"), "{file} byte {index}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(refusal(dir.path()).contains(file));
        std::fs::write(&path, [bytes.as_slice(), &[0; 20_000]].concat()).unwrap();
        assert!(refusal(dir.path()).contains("size"), "{file} with a tail");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(refusal(dir.path()).contains("no regular file"));
        std::fs::remove_dir(&path).unwrap();
        assert!(refusal(dir.path()).contains("cannot be read"));
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(Case::load(dir.path()).is_ok());
}

/// Without this, values that bf16 cannot hold would be given to a bf16 backend and be rounded there.
#[test]
fn refuses_a_bf16_tensor_that_is_not_one() {
    let (dir, mut manifest) = good();
    let files = put(dir.path(), "y.npy", &f32_npy("(2, 3)", &[1.0, 2.0, 3.0, 0.1, 5.0, 6.0]));
    manifest["tensors"]["y"]["sha256"] = files["sha256"].clone();
    write(dir.path(), &manifest);
    let message = refusal(dir.path());
    assert!(message.contains("y.npy: element 3: is 0.1"), "{message}");
}

/// Without this, cut or garbled JSON could panic.
#[test]
fn refuses_a_manifest_cut_anywhere() {
    let (dir, manifest) = good();
    let text = manifest.to_string();
    for end in (0..text.len()).step_by(7) {
        std::fs::write(dir.path().join("case.json"), &text[..end]).unwrap();
        assert!(refusal(dir.path()).contains("case.json"), "cut after {end} bytes");
    }
    std::fs::write(dir.path().join("case.json"), "{\"config\":{\"a\":".to_owned() + &"[".repeat(1 << 20))
        .unwrap();
    assert!(refusal(dir.path()).contains("recursion limit"));
}
