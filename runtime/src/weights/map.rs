//! Parameters held in memory by name: what the golden harness builds from a case's files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Tensor, Values, WeightSource};
use crate::error::{Error, Result};

/// Named tensors of float64 values.
pub struct MapWeights {
    origin: PathBuf,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl MapWeights {
    /// Tensors by name: their shape, outermost dimension first, and their values. `origin` only serves the error messages.
    #[must_use]
    pub fn new(origin: impl Into<PathBuf>, tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>) -> Self {
        Self { origin: origin.into(), tensors }
    }

    fn invalid(&self, name: &str, problem: String) -> Error {
        Error::Invalid { path: self.origin.clone(), field: name.to_owned(), problem }
    }
}

impl WeightSource for MapWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let Some((found, values)) = self.tensors.get(name) else {
            return Err(self.invalid(name, format!("is missing, expected shape {shape:?}")));
        };
        if found != shape {
            return Err(self.invalid(name, format!("has shape {found:?}, expected {shape:?}")));
        }
        let elements: usize = shape.iter().product();
        if values.len() != elements {
            let problem = format!("has {} values, expected {elements} for shape {shape:?}", values.len());
            return Err(self.invalid(name, problem));
        }
        Ok(Tensor { shape: found.clone(), values: Values::F64(Cow::Borrowed(values)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> MapWeights {
        let tensors = [
            ("weight".to_owned(), (vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            ("short".to_owned(), (vec![2, 3], vec![1.0])),
        ];
        MapWeights::new("case", tensors.into())
    }

    /// Without this, a transposed or truncated golden parameter would be handed on as if it fitted.
    #[test]
    fn gives_what_was_put_in_and_nothing_else() {
        let source = source();
        let tensor = source.tensor("weight", &[2, 3]).unwrap();
        assert_eq!(tensor.shape, [2, 3]);
        assert!(matches!(&tensor.values, Values::F64(v) if v[..] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let message = |name, shape: &[usize]| source.tensor(name, shape).unwrap_err().to_string();
        assert_eq!(message("weight", &[3, 2]), "case: weight: has shape [2, 3], expected [3, 2]");
        assert_eq!(message("bias", &[3]), "case: bias: is missing, expected shape [3]");
        assert_eq!(message("short", &[2, 3]), "case: short: has 1 values, expected 6 for shape [2, 3]");
    }
}
