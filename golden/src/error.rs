//! What can be wrong with a case. Every message names the file and the field, and says what was expected.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A case that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file was read, and its content is not what the format asks for.
    #[error("{path}: {field}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field, tensor or position in it.
        field: String,
        /// What stands there and what was expected.
        problem: String,
    },
}

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(path: &Path, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), field: field.into(), problem: problem.into() }
    }
}
