//! Why a case could not be run. A case that ran and is wrong is no error but a failing row.

use std::path::PathBuf;

impl Error {
    /// Why the backend is absent; `None` for every other error.
    #[must_use]
    pub fn absence(&self) -> Option<&str> {
        match self {
            Self::Runtime(touchstone_runtime::Error::NoDevice(why)) => Some(why),
            _ => None,
        }
    }

    /// Whether the case or a file it needs is at fault, so that nothing is said about the backend.
    #[must_use]
    pub fn is_unusable_input(&self) -> bool {
        match self {
            Self::Case(_) | Self::UnknownOp { .. } | Self::NoRoot { .. } | Self::Search { .. } => true,
            Self::Runtime(error) => !matches!(
                error,
                touchstone_runtime::Error::NoDevice(_) | touchstone_runtime::Error::Kernel(_)
            ),
            Self::StrayWrite { .. } | Self::SideEffect { .. } | Self::Unopened(_) | Self::Panicked(_) => {
                false
            }
        }
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A check without a verdict.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The case itself.
    #[error(transparent)]
    Case(#[from] touchstone_golden::Error),
    /// The runtime refused or failed.
    #[error(transparent)]
    Runtime(#[from] touchstone_runtime::Error),
    /// No runner for the op.
    #[error("{path}: op: {op:?} is not known, not checked")]
    UnknownOp {
        /// The `case.json`.
        path: PathBuf,
        /// The op it names.
        op: String,
    },
    /// A verb wrote where it must not.
    #[error("{buffer}: was written beyond its end, at element {element} of {len}")]
    StrayWrite {
        /// The buffer.
        buffer: String,
        /// The element written.
        element: usize,
        /// Elements that the verb may write.
        len: usize,
    },
    /// The harness's own expectation of a verb's side effects failed.
    #[error("{what}: is {actual}, expected {expected}")]
    SideEffect {
        /// What was looked at.
        what: &'static str,
        /// What stood there.
        actual: String,
        /// What should have.
        expected: String,
    },
    /// There is a GPU, and it cannot be used.
    #[error("the GPU cannot be opened: {0}")]
    Unopened(String),
    /// The run panicked.
    #[error("panicked: {0}")]
    Panicked(String),
    /// No folder above holds the golden cases.
    #[error("no folder with {cases} and {models} from {start} upwards; set TOUCHSTONE_ROOT")]
    NoRoot {
        /// Where the search began.
        start: PathBuf,
        /// The first folder looked for.
        cases: &'static str,
        /// The second.
        models: &'static str,
    },
    /// A folder could not be searched.
    #[error("{path}: cannot be read: {source}")]
    Search {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}
