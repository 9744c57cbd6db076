//! A checkpoint's folder in the Hugging Face layout: `config.json` and `model.safetensors`, checked as a whole when opened.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use safetensors::{SafeTensorError, SafeTensors};

use super::{Tensor, Values, WeightSource};
use crate::config::{Config, StoredDtype};
use crate::error::{Error, Result};
use crate::plan::{self, Entry};

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little endian, and weights are read without swapping bytes");

/// A model's folder, read and checked: every tensor of the config is there, nothing else is, each has the config's shape and dtype, and
/// every value is finite.
pub struct Checkpoint {
    config: Config,
    path: PathBuf,
    /// The whole of `model.safetensors`.
    bytes: Vec<u8>,
    /// Where the tensors' data begins in `bytes`.
    data_start: usize,
    metadata: Metadata,
}

impl Checkpoint {
    /// Reads `dir/config.json` and `dir/model.safetensors`.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that cannot be read; [`Error::Invalid`], naming file and tensor, for a broken config, a damaged file, a
    /// missing, surplus or misshapen tensor, another dtype than the config's, and a NaN or infinite weight.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = Config::load(&dir.join("config.json"))?;
        let path = dir.join("model.safetensors");
        // Read, not mapped: a file that changes under a mapping is undefined behaviour, and the weights go to the device once.
        let bytes = fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let (header_bytes, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&path, &error))?;
        let data_start = size_of::<u64>() + header_bytes;
        let checkpoint = Self { config, path, bytes, data_start, metadata };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// The model's dimensions.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn check(&self) -> Result<()> {
        let expected = plan::weights(&self.config);
        for Entry { name, shape, .. } in &expected {
            let tensor = self.tensor(name, shape)?;
            if let Some((index, value)) = tensor.values.first_not_finite() {
                let problem =
                    format!("holds {value} at index {index} of shape {shape:?}, expected finite values");
                return Err(self.invalid(name, problem));
            }
        }
        let surplus =
            self.metadata.offset_keys().into_iter().find(|name| expected.iter().all(|e| e.name != *name));
        match surplus {
            Some(name) => {
                let shape = &self.metadata.info(&name).expect("the name is the metadata's own").shape;
                let problem = format!(
                    "has shape {shape:?} and belongs to no part of the model that config.json describes"
                );
                Err(self.invalid(&name, problem))
            }
            None => Ok(()),
        }
    }

    /// The values of a tensor whose dtype must be the config's.
    fn values(&self, name: &str, info: &TensorInfo) -> Result<Values<'_>> {
        let (start, end) = info.data_offsets;
        let bytes = &self.bytes[self.data_start + start..self.data_start + end];
        match (info.dtype, self.config.dtype) {
            (Dtype::F32, StoredDtype::Float32) => Ok(Values::F32(cast(bytes))),
            (Dtype::BF16, StoredDtype::Bfloat16) => Ok(Values::Bf16(cast(bytes))),
            (found, declared) => {
                let expected = match declared {
                    StoredDtype::Float32 => Dtype::F32,
                    StoredDtype::Bfloat16 => Dtype::BF16,
                };
                Err(self
                    .invalid(name, format!("has dtype {found}, expected {expected} as config.json declares")))
            }
        }
    }

    fn invalid(&self, name: &str, problem: String) -> Error {
        Error::Invalid { path: self.path.clone(), field: name.to_owned(), problem }
    }
}

impl WeightSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let Some(info) = self.metadata.info(name) else {
            return Err(self.invalid(name, format!("is missing, expected shape {shape:?}")));
        };
        if info.shape != shape {
            return Err(self.invalid(name, format!("has shape {:?}, expected {shape:?}", info.shape)));
        }
        Ok(Tensor { shape: info.shape.clone(), values: self.values(name, info)? })
    }
}

/// The bytes as values: borrowed where they are aligned, copied where the header's length put them out of line.
fn cast<T: Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) => Cow::Borrowed(values),
        Err(_) => Cow::Owned(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()),
    }
}

fn damaged(path: &Path, error: &SafeTensorError) -> Error {
    let problem = match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            "the tensors it lists do not fill the file exactly: it is truncated, or has surplus bytes"
                .to_owned()
        }
        other => format!("not a safetensors file: {other}"),
    };
    Error::Invalid { path: path.into(), field: "header".into(), problem }
}
