//! What can go wrong, as data. Messages are lower case, name the file and the field, and say what was expected.

use std::error::Error as _;
use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure that the runtime reports.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}")]
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
    /// A prompt holds a character that the vocabulary lacks.
    #[error(
        "character {character:?} (U+{:04X}) at position {position} of the prompt is not in the model's vocabulary",
        u32::from(*.character)
    )]
    UnknownCharacter {
        /// The character.
        character: char,
        /// Its index among the prompt's characters, from 0.
        position: usize,
    },
    /// An argument, or a combination of arguments, that cannot work.
    #[error("{name}: {problem}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// What it is and what was expected.
        problem: String,
    },
    /// The sequence does not fit into the context that the model was built for.
    #[error("{needed} positions do not fit into the context of {context}")]
    ContextFull {
        /// Positions asked for.
        needed: usize,
        /// Positions there are.
        context: usize,
    },
    /// No usable GPU.
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    /// The GPU, its driver or its compiler reported an error.
    #[error(transparent)]
    Kernel(touchstone_kernels::Error),
}

impl From<touchstone_kernels::Error> for Error {
    fn from(error: touchstone_kernels::Error) -> Self {
        match error {
            touchstone_kernels::Error::NoDevice(why) => Error::NoDevice(why),
            other => Error::Kernel(other),
        }
    }
}

impl Error {
    /// The error and what caused it, as one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            cause = error.source();
        }
        message
    }

    /// The process exit code for this error: 2 usage, 3 no device, 4 bad model or file, 5 the device failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::UnknownCharacter { .. } | Error::Argument { .. } | Error::ContextFull { .. } => 2,
            Error::NoDevice(_) => 3,
            Error::Read { .. } | Error::Invalid { .. } => 4,
            Error::Kernel(_) => 5,
        }
    }
}
