//! `case.json` as it is written. Unknown fields, unknown values and repeated keys are errors.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub op: String,
    pub case: String,
    pub dtype: CaseDtype,
    pub seed: u64,
    pub config: serde_json::Map<String, serde_json::Value>,
    pub tensors: Entries,
    pub generator: Generator,
}

/// What made a case.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generator {
    /// torch's version.
    pub torch: String,
    /// numpy's version.
    pub numpy: String,
    /// Checksum of the scripts that the case depends on.
    pub script_sha256: String,
}

/// One tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub role: Role,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub file: String,
    pub sha256: String,
    pub truth: Option<Companion>,
    pub injected: Option<Companion>,
    pub rule: Option<RuleName>,
    pub margins: Option<String>,
}

/// A float64 file of a tensor's own shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Companion {
    pub file: String,
    pub sha256: String,
}

/// The tensors in the file's order.
pub struct Entries(pub Vec<(String, Entry)>);

/// What a tensor is to the op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What the op is given.
    Input,
    /// A weight.
    Parameter,
    /// What the reference answered.
    Output,
    /// How far the winner was ahead at each step of a greedy choice.
    Margin,
}

/// How a tensor's values are to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16, stored as float32.
    Bf16,
    /// Token ids.
    U32,
    /// Margins.
    F64,
}

/// The precision in which the reference computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseDtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// How an output is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleName {
    Gate,
    Exact,
    Greedy,
}

impl Dtype {
    /// The name in `case.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::U32 => "u32",
            Self::F64 => "f64",
        }
    }

    /// Rounding to this dtype, relative to the value: half a unit in the last place. Integers are exact.
    #[must_use]
    pub fn rounding(self) -> f64 {
        match self {
            Self::F32 => 2f64.powi(-24),
            Self::Bf16 => 2f64.powi(-8),
            Self::F64 => 2f64.powi(-53),
            Self::U32 => 0.0,
        }
    }
}

impl CaseDtype {
    /// The name in `case.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Keeps the order of the tensors and refuses a name that comes twice; serde's own maps keep the last one silently.
struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries: Vec<(String, Entry)> = Vec::new();
        while let Some((name, entry)) = map.next_entry::<String, Entry>()? {
            if entries.iter().any(|(other, _)| *other == name) {
                return Err(A::Error::custom(format!("tensor {name:?} comes twice")));
            }
            entries.push((name, entry));
        }
        Ok(Entries(entries))
    }
}
