//! A golden case in memory, every file of it checked.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::manifest::{CaseDtype, Companion, Dtype, Entries, Entry, Generator, Manifest, Role, RuleName};
use crate::npy::{self, Element};

/// The format that this crate reads.
const FORMAT: u32 = 1;
/// The longest `case.json` that is read; the largest of ours has 20 KB.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// The deepest shape that is read.
const RANK_MAX: usize = 8;

/// One golden case.
#[derive(Debug)]
pub struct Case {
    /// Its `case.json`.
    pub path: PathBuf,
    /// The op's name.
    pub op: String,
    /// The case's name, unique within the op.
    pub name: String,
    /// The precision in which the reference computed.
    pub dtype: CaseDtype,
    /// What its numbers were drawn from.
    pub seed: u64,
    /// What made it.
    pub generator: Generator,
    /// The op's settings, see [`Case::config`].
    config: serde_json::Map<String, serde_json::Value>,
    operands: Vec<(String, Role, Tensor)>,
    outputs: Vec<Output>,
}

/// A tensor of any dtype; float64 holds every value of each exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The declared dtype.
    pub dtype: Dtype,
    /// Dimensions, outermost first; none is 0.
    pub shape: Vec<usize>,
    /// As many as the shape asks for, row-major.
    pub values: Vec<f64>,
}

/// What the reference answered, and how to compare with it.
#[derive(Debug)]
pub struct Output {
    /// `y`, or a tap's module path.
    pub name: String,
    /// As the reference computed it in the case's precision.
    pub reference: Tensor,
    /// The same computed in float64. Always there under [`Rule::Gate`].
    pub truth: Option<Vec<f64>>,
    /// For a tap: the float64 op applied to the *reference's* inputs of that very op.
    pub injected: Option<Vec<f64>>,
    /// How to compare.
    pub rule: Rule,
}

/// How an output is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// By the ratio of errors to the truth.
    Gate,
    /// To the bit.
    Exact,
    /// Token ids `[B, N]`, with the winner's lead `[B, N]` at each step.
    Greedy {
        /// The leads.
        margins: Vec<f64>,
    },
}

impl Case {
    /// Reads the case in the folder `dir` and checks all of it.
    ///
    /// # Errors
    /// A missing or unreadable file, or anything in which `case.json` and the files disagree with the format or each other.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("case.json");
        let text = read_file(&path, MANIFEST_BYTES_MAX)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| Error::invalid(&path, "case.json", e.to_string()))?;
        if manifest.format != FORMAT {
            let problem = format!("is {}, expected {FORMAT}", manifest.format);
            return Err(Error::invalid(&path, "format", problem));
        }
        let Manifest { op, case, dtype, seed, config, tensors, generator, .. } = manifest;
        let (mut operands, mut outputs, mut greedy) = (Vec::new(), Vec::new(), Vec::new());
        let Entries(entries) = tensors;
        for (name, entry) in entries {
            let files = Files { dir, manifest: &path, name: &name, shape: &entry.shape };
            let tensor = files.tensor(&entry)?;
            if entry.role == Role::Output {
                if let Some(margins) = entry.margins.clone() {
                    greedy.push((outputs.len(), margins));
                }
                outputs.push(files.output(&entry, tensor)?);
            } else {
                files.refuse_output_fields(&entry)?;
                operands.push((name, entry.role, tensor));
            }
        }
        let mut case = Self { path, op, name: case, dtype, seed, generator, config, operands, outputs };
        if case.outputs.is_empty() {
            return Err(case.invalid("tensors", "hold no output, so that there is nothing to compare"));
        }
        for (index, margins) in greedy {
            case.attach_margins(index, &margins)?;
        }
        Ok(case)
    }

    /// What the reference answered, in the file's order.
    #[must_use]
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The output `name`.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// The inputs and parameters: name, role and tensor, in the file's order.
    pub fn operands(&self) -> impl Iterator<Item = (&str, Role, &Tensor)> {
        self.operands
            .iter()
            .filter(|(_, role, _)| *role != Role::Margin)
            .map(|(name, role, tensor)| (name.as_str(), *role, tensor))
    }

    /// The settings as the op's own type, which should deny unknown fields.
    ///
    /// # Errors
    /// A field that is missing, unknown or of another type.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&serde_json::Value::Object(self.config.clone()))
            .map_err(|e| self.invalid("config", e.to_string()))
    }

    /// Whether `config` has this field.
    #[must_use]
    pub fn has_config(&self, field: &str) -> bool {
        self.config.contains_key(field)
    }

    /// An error in this case's `case.json`.
    pub fn invalid(&self, field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::invalid(&self.path, field, problem)
    }

    /// Moves the margins' values to the output that names them.
    fn attach_margins(&mut self, index: usize, margins: &str) -> Result<()> {
        let field = format!("tensors.{}.margins", self.outputs[index].name);
        let found = self.operands.iter().find(|(name, role, _)| name == margins && *role == Role::Margin);
        let Some((_, _, tensor)) = found else {
            return Err(
                self.invalid(field, format!("names {margins:?}, and no tensor of role margin has that name"))
            );
        };
        let shape = &self.outputs[index].reference.shape;
        if tensor.shape != *shape || shape.len() != 2 {
            let problem =
                format!("have shape {:?}, and the output {shape:?}: expected [B, N] twice", tensor.shape);
            return Err(self.invalid(field, problem));
        }
        let margins = tensor.values.clone();
        self.outputs[index].rule = Rule::Greedy { margins };
        Ok(())
    }
}

impl Tensor {
    /// The last dimension; 1 for a scalar.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// The files of one tensor.
struct Files<'a> {
    dir: &'a Path,
    manifest: &'a Path,
    name: &'a str,
    shape: &'a [usize],
}

impl Files<'_> {
    fn invalid(&self, field: &str, problem: impl Into<String>) -> Error {
        Error::invalid(self.manifest, format!("tensors.{}.{field}", self.name), problem)
    }

    fn tensor(&self, entry: &Entry) -> Result<Tensor> {
        if self.shape.len() > RANK_MAX || self.shape.contains(&0) {
            let problem =
                format!("is {:?}, expected at most {RANK_MAX} dimensions of at least 1", self.shape);
            return Err(self.invalid("shape", problem));
        }
        if (entry.dtype == Dtype::F64) != (entry.role == Role::Margin) {
            return Err(
                self.invalid("dtype", "f64 is for tensors of role margin, and they have no other dtype")
            );
        }
        let element = match entry.dtype {
            Dtype::F32 | Dtype::Bf16 => Element::F32,
            Dtype::U32 => Element::U32,
            Dtype::F64 => Element::F64,
        };
        let values = self.values(&entry.file, &entry.sha256, element, "")?;
        // The lower half of a float32 is what bfloat16 leaves out.
        let fits = |value: &f64| (*value as f32).to_bits().trailing_zeros() >= 16;
        if entry.dtype == Dtype::Bf16
            && let Some(index) = values.iter().position(|value| !fits(value))
        {
            let path = self.dir.join(&entry.file);
            let problem = format!("is {}, which bf16 does not represent", values[index]);
            return Err(Error::invalid(&path, format!("element {index}"), problem));
        }
        Ok(Tensor { dtype: entry.dtype, shape: self.shape.to_vec(), values })
    }

    fn output(&self, entry: &Entry, reference: Tensor) -> Result<Output> {
        let companion = |field: &str, companion: &Option<Companion>| {
            let load = |c: &Companion| self.values(&c.file, &c.sha256, Element::F64, &format!("{field}."));
            companion.as_ref().map(load).transpose()
        };
        let (truth, injected) = (companion("truth", &entry.truth)?, companion("injected", &entry.injected)?);
        let rule = match entry.rule.unwrap_or(RuleName::Gate) {
            RuleName::Gate if entry.dtype == Dtype::U32 => {
                return Err(self.invalid("rule", "is gate, and u32 is compared by exact or greedy"));
            }
            RuleName::Gate if truth.is_none() => {
                return Err(self.invalid("truth", "is missing, and the gate needs it"));
            }
            RuleName::Gate => Rule::Gate,
            RuleName::Exact => Rule::Exact,
            RuleName::Greedy if entry.dtype == Dtype::U32 => Rule::Greedy { margins: Vec::new() },
            RuleName::Greedy => return Err(self.invalid("rule", "is greedy, which is for u32 alone")),
        };
        if matches!(rule, Rule::Greedy { .. }) != entry.margins.is_some() {
            return Err(self.invalid("margins", "belongs to the rule greedy, and to no other"));
        }
        Ok(Output { name: self.name.to_owned(), reference, truth, injected, rule })
    }

    fn refuse_output_fields(&self, entry: &Entry) -> Result<()> {
        let fields = [
            ("truth", entry.truth.is_some()),
            ("injected", entry.injected.is_some()),
            ("rule", entry.rule.is_some()),
            ("margins", entry.margins.is_some()),
        ];
        match fields.iter().find(|(_, present)| *present) {
            Some((field, _)) => Err(self.invalid(field, "stands in a tensor that is no output")),
            None => Ok(()),
        }
    }

    /// Reads and checks one `.npy` file; `prefix` leads to its entry in `case.json`, below the tensor's.
    fn values(&self, file: &str, sha256: &str, element: Element, prefix: &str) -> Result<Vec<f64>> {
        let plain = Path::new(file).file_name().is_some_and(|name| name == file);
        if !plain || file.contains(['/', '\\', '\0']) {
            return Err(self.invalid(
                &format!("{prefix}file"),
                format!("is {file:?}, expected a name in the case's folder"),
            ));
        }
        let Some(data_bytes) = npy::byte_len(self.shape, element) else {
            return Err(self.invalid("shape", format!("is {:?}, too large to exist", self.shape)));
        };
        let path = self.dir.join(file);
        let bytes = read_file(&path, data_bytes.saturating_add(npy::HEADER_BYTES_MAX + 12))?;
        let actual: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if actual != sha256 {
            let field = format!("tensors.{}.{prefix}sha256", self.name);
            return Err(Error::invalid(
                &path,
                field,
                format!("is {actual}, and case.json expects {sha256:?}"),
            ));
        }
        let npy = npy::parse(&bytes).map_err(|problem| Error::invalid(&path, "npy", problem))?;
        if npy.shape != self.shape {
            let problem = format!("is {:?}, and case.json expects {:?}", npy.shape, self.shape);
            return Err(Error::invalid(&path, "shape", problem));
        }
        if npy.element != element {
            let problem = format!("is {}, and case.json expects {}", npy.element.name(), element.name());
            return Err(Error::invalid(&path, "dtype", problem));
        }
        Ok(element.values(npy.data))
    }
}

/// Reads a regular file of at most `bytes_max`; the size is known before any memory is taken.
fn read_file(path: &Path, bytes_max: usize) -> Result<Vec<u8>> {
    let read = |source| Error::Read { path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(read)?;
    // Opening a pipe would wait for ever, a device has no end.
    if !metadata.is_file() {
        return Err(Error::invalid(path, "file", "is no regular file"));
    }
    if metadata.len() > bytes_max as u64 {
        let problem = format!("has {} bytes, expected at most {bytes_max}", metadata.len());
        return Err(Error::invalid(path, "size", problem));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(read)?;
    file.take(bytes_max as u64).read_to_end(&mut bytes).map_err(read)?;
    Ok(bytes)
}
