//! Checkpoints that are in order, and every way in which one may not be.

mod common;

use std::fs;
use std::path::Path;

use common::{TinyModel, floats};
use safetensors::tensor::Dtype;
use touchstone_runtime::Error;
use touchstone_runtime::weights::{Checkpoint, Values, WeightSource};

const SCALE: &str = "blocks.1.ln2.weight";
const MATRIX: &str = "blocks.0.mlp.up.weight";

/// Without this, values could be read from another tensor's place, or through the wrong dtype.
#[test]
fn every_tensor_comes_back_as_it_was_stored() {
    for (model, bf16) in [(TinyModel::new(), false), (TinyModel::bf16(), true)] {
        let dir = model.write();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.config().hidden_size, 8);
        for (name, (_, shape, _)) in &model.tensors {
            let tensor = checkpoint.tensor(name, shape).unwrap();
            let stored = floats(name, shape);
            match tensor.values {
                Values::F32(values) if !bf16 => assert_eq!(values[..], stored[..], "{name}"),
                Values::Bf16(values) if bf16 => {
                    let rounded: Vec<_> = stored.into_iter().map(half::bf16::from_f32).collect();
                    assert_eq!(values[..], rounded[..], "{name}");
                }
                other => panic!("{name}: unexpected dtype in {other:?}"),
            }
        }
    }
}

/// Without this, a header of odd length, which other writers make, would put every float out of line and end in a panic.
#[test]
fn unaligned_data_is_read_all_the_same() {
    let model = TinyModel::new();
    let dir = model.write();
    let mut file = model.file();
    let header_bytes = u64::from_le_bytes(file[..8].try_into().unwrap());
    file[..8].copy_from_slice(&(header_bytes + 1).to_le_bytes());
    file.insert(8 + header_bytes as usize, b' ');
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    match checkpoint.tensor(MATRIX, &[20, 8]).unwrap().values {
        Values::F32(values) => assert_eq!(values[..], floats(MATRIX, &[20, 8])[..]),
        other => panic!("expected float32, got {other:?}"),
    }
}

/// The refusal of a changed tiny model: field and problem.
fn refusal(change: impl FnOnce(&mut TinyModel)) -> String {
    let mut model = TinyModel::new();
    change(&mut model);
    let dir = model.write();
    refusal_of(dir.path())
}

fn refusal_of(dir: &Path) -> String {
    match Checkpoint::open(dir).map(|_| ()) {
        Err(Error::Invalid { path, field, problem }) => {
            assert!(path.starts_with(dir), "{} is not below {}", path.display(), dir.display());
            format!("{field}: {problem}")
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Without this, a tensor could be missing, of another model, or transposed, and something would run.
#[test]
fn a_tensor_that_is_missing_surplus_or_misshapen_is_named() {
    let problem = refusal(|model| drop(model.tensors.remove(SCALE)));
    assert_eq!(problem, "blocks.1.ln2.weight: is missing, expected shape [8]");
    let problem = refusal(|model| {
        let stored = model.tensors[SCALE].clone();
        model.tensors.insert("blocks.2.ln2.weight".into(), stored);
    });
    assert!(problem.starts_with("blocks.2.ln2.weight: has shape [8] and belongs to no part"), "{problem}");
    let problem = refusal(|model| model.tensors.get_mut(MATRIX).unwrap().1 = vec![8, 20]);
    assert_eq!(problem, "blocks.0.mlp.up.weight: has shape [8, 20], expected [20, 8]");
}

/// Without this, a checkpoint of another precision than its config says would be read as garbage or converted silently.
#[test]
fn a_dtype_that_the_config_does_not_declare_is_named() {
    let problem = refusal(|model| model.config["dtype"] = "bfloat16".into());
    assert!(problem.ends_with("has dtype F32, expected BF16 as config.json declares"), "{problem}");
    let problem = refusal(|model| model.tensors.get_mut(SCALE).unwrap().0 = Dtype::I32);
    assert_eq!(problem, "blocks.1.ln2.weight: has dtype I32, expected F32 as config.json declares");
}

/// Without this, one NaN in a file would turn all text into noise, far from its cause.
#[test]
fn a_weight_that_is_not_finite_is_named_with_its_index() {
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let problem = refusal(|model| {
            model.tensors.get_mut(MATRIX).unwrap().2[4 * 37..4 * 38].copy_from_slice(&value.to_le_bytes());
        });
        let expected = format!("{MATRIX}: holds {name} at index 37 of shape [20, 8], expected finite values");
        assert_eq!(problem, expected);
    }
}

/// Without this, half a download would be read as a model, or panic.
#[test]
fn a_damaged_file_is_refused_wherever_it_ends() {
    let model = TinyModel::new();
    let dir = model.write();
    let file = model.file();
    let path = dir.path().join("model.safetensors");
    let mut damaged: Vec<Vec<u8>> =
        [0, 5, 8, 100, file.len() / 2, file.len() - 1].map(|n| file[..n].to_vec()).into();
    damaged.push([&file[..], &[0]].concat());
    damaged.push([&[0xFF; 8], &file[8..]].concat());
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        let problem = refusal_of(dir.path());
        assert!(problem.starts_with("header: "), "{} bytes: {problem}", bytes.len());
    }
}

/// Without this, a config's typing error or a zero would run another model, or divide by it.
#[test]
fn a_broken_config_is_named() {
    let problem = refusal(|model| model.config["n_layer"] = 2.into());
    assert!(problem.starts_with("config: unknown field `n_layer`"), "{problem}");
    let problem = refusal(|model| model.config["max_position_embeddings"] = 0.into());
    assert!(problem.starts_with("max_position_embeddings: is 0, expected 1 to"), "{problem}");
    let problem = refusal(|model| model.config["hidden_act"] = "gelu_new".into());
    assert!(problem.starts_with("config: unknown variant `gelu_new`"), "{problem}");
    let problem = refusal(|model| model.config["num_attention_heads"] = 3.into());
    assert!(problem.starts_with("num_attention_heads: is 3, which does not divide"), "{problem}");
}

/// Without this, a wrong path would be reported without its name.
#[test]
fn a_missing_file_is_named() {
    let dir = TinyModel::new().write();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    match Checkpoint::open(dir.path()).map(|_| ()) {
        Err(Error::Read { path, .. }) => assert_eq!(path, dir.path().join("model.safetensors")),
        other => panic!("expected the missing file to be named, got {other:?}"),
    }
}
