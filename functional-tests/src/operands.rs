//! A case's inputs and parameters as an op takes them: by name, with the shape that the op needs, and none left over.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use touchstone_golden::{Case, Dtype, Role, Tensor};
use touchstone_runtime::weights::{self, Checkpoint, Values, WeightSource};
use touchstone_runtime::{Backend, Error as RuntimeError};

use crate::error::{Error, Result};

/// How a case names a committed model.
#[derive(Deserialize)]
pub struct Trained {
    /// The folder.
    pub model: String,
    /// Of its `model.safetensors`.
    pub model_sha256: String,
}

/// A case and what has been taken from it.
pub struct Operands<'a> {
    /// The case.
    pub case: &'a Case,
    /// The folder of the committed models, for cases that name one.
    pub models: &'a Path,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> Operands<'a> {
    /// Nothing taken yet.
    pub fn new(case: &'a Case, models: &'a Path) -> Self {
        Self { case, models, taken: RefCell::default() }
    }

    /// The operand `name`, if there is one of this role.
    fn find(&self, name: &str, role: Role) -> Option<&'a Tensor> {
        let (_, _, tensor) = self.case.operands().find(|(other, r, _)| *other == name && *r == role)?;
        self.taken.borrow_mut().insert(name.into());
        Some(tensor)
    }

    /// The input `name` with `rank` dimensions, of floating-point values. Errors: missing, or another shape or dtype.
    pub fn input(&self, name: &str, rank: usize) -> Result<&'a Tensor> {
        let tensor = self.any_rank(name)?;
        if tensor.shape.len() != rank {
            let problem = format!("is {:?}, expected {rank} dimensions", tensor.shape);
            return Err(self.invalid(name, "shape", problem));
        }
        Ok(tensor)
    }

    /// The input `name` `[...]` of floating-point values. Errors: missing, of another dtype, or without dimensions.
    pub fn any_rank(&self, name: &str) -> Result<&'a Tensor> {
        let tensor = self.find(name, Role::Input).ok_or_else(|| self.missing(name, Role::Input))?;
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::Bf16) || tensor.shape.is_empty() {
            let problem =
                format!("is {} {:?}, expected f32 or bf16 [...]", tensor.dtype.name(), tensor.shape);
            return Err(self.invalid(name, "dtype", problem));
        }
        Ok(tensor)
    }

    /// The input `name`, token ids `[B, T]`. Errors: missing, or another shape or dtype.
    pub fn tokens(&self, name: &str) -> Result<(Vec<u32>, [usize; 2])> {
        let tensor = self.find(name, Role::Input).ok_or_else(|| self.missing(name, Role::Input))?;
        match (tensor.dtype, tensor.shape.as_slice()) {
            (Dtype::U32, &[batch, time]) => {
                Ok((tensor.values.iter().map(|v| *v as u32).collect(), [batch, time]))
            }
            (dtype, shape) => {
                let problem = format!("is {} {shape:?}, expected u32 [B, T]", dtype.name());
                Err(self.invalid(name, "dtype", problem))
            }
        }
    }

    /// The shape of the parameter `name`, which has `rank` dimensions. Errors: missing, or of another rank.
    pub fn parameter_shape(&self, name: &str, rank: usize) -> Result<&'a [usize]> {
        let found = self.case.operands().find(|(other, role, _)| *other == name && *role == Role::Parameter);
        let (_, _, tensor) = found.ok_or_else(|| self.missing(name, Role::Parameter))?;
        if tensor.shape.len() != rank {
            let problem = format!("is {:?}, expected {rank} dimensions", tensor.shape);
            return Err(self.invalid(name, "shape", problem));
        }
        Ok(&tensor.shape)
    }

    /// Whether the case has the parameter `name`.
    pub fn has_parameter(&self, name: &str) -> bool {
        self.case.operands().any(|(other, role, _)| other == name && role == Role::Parameter)
    }

    /// The parameter `name` on the backend. Errors: missing, of another shape, or out of memory.
    pub fn weight<B: Backend>(&self, b: &mut B, name: &str, shape: &[usize]) -> Result<B::Weight> {
        Ok(b.weight(&self.tensor(name, shape)?)?)
    }

    /// Whether every operand was taken: one that the op does not know would otherwise be ignored silently.
    pub fn all_taken(&self) -> Result<()> {
        let taken = self.taken.borrow();
        match self.case.operands().find(|(name, ..)| !taken.contains(*name)) {
            None => Ok(()),
            Some((name, role, _)) => {
                let op = &self.case.op;
                Err(self.invalid(name, "role", format!("is {role:?}, and {op} takes no such tensor")))
            }
        }
    }

    /// An error about a tensor's field.
    pub fn invalid(&self, name: &str, field: &str, problem: impl Into<String>) -> Error {
        self.case.invalid(format!("tensors.{name}.{field}"), problem).into()
    }

    fn missing(&self, name: &str, role: Role) -> Error {
        self.case.invalid(format!("tensors.{name}"), format!("is missing, expected an {role:?}")).into()
    }
}

impl WeightSource for Operands<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> touchstone_runtime::Result<weights::Tensor<'_>> {
        let invalid = |problem: String| RuntimeError::Invalid {
            path: self.case.path.clone(),
            field: format!("tensors.{name}"),
            problem,
        };
        let Some(tensor) = self.find(name, Role::Parameter) else {
            return Err(invalid(format!("is missing, expected a parameter {shape:?}")));
        };
        if tensor.shape != shape {
            return Err(invalid(format!("has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        // In the stored dtype, so that each way of converting a checkpoint is exercised.
        let values = match tensor.dtype {
            Dtype::F32 => Values::F32(tensor.values.iter().map(|v| *v as f32).collect()),
            Dtype::Bf16 => Values::Bf16(tensor.values.iter().map(|v| half::bf16::from_f64(*v)).collect()),
            Dtype::F64 | Dtype::U32 => Values::F64(Cow::Borrowed(&tensor.values)),
        };
        Ok(weights::Tensor { shape: tensor.shape.clone(), values })
    }
}

impl Operands<'_> {
    /// The committed model that the case names. Errors: there is none, or it is another one than the case was made with.
    pub fn checkpoint(&self, Trained { model, model_sha256 }: &Trained) -> Result<Checkpoint> {
        let folder = Path::new(model).file_name().filter(|name| *name == model.as_str());
        let Some(folder) = folder.map(|name| self.models.join(name)) else {
            return Err(self
                .case
                .invalid("config.model", format!("is {model:?}, expected a folder's name"))
                .into());
        };
        let path = folder.join("model.safetensors");
        let bytes =
            std::fs::read(&path).map_err(|source| RuntimeError::Read { path: path.clone(), source })?;
        let actual: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if actual != *model_sha256 {
            let problem = format!("is {model_sha256:?}, and {} has {actual}", path.display());
            return Err(self.case.invalid("config.model_sha256", problem).into());
        }
        Ok(Checkpoint::open(&folder)?)
    }
}
