//! What can go wrong below the runtime.

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of the driver, the compiler and the launchers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No driver, no GPU, or no GPU of that number.
    #[error("{0}")]
    NoDevice(String),
    /// A library that ships with CUDA is not there.
    #[error("{library} not found: {remedy}")]
    MissingLibrary {
        /// What was looked for.
        library: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// NVRTC refused a kernel.
    #[error("cannot compile the kernels for {arch}: {log}")]
    Compile {
        /// For which architecture.
        arch: String,
        /// The compiler's words.
        log: String,
    },
    /// A driver call failed.
    #[error("{call} failed: {code} ({meaning})")]
    Driver {
        /// The call or the kernel.
        call: &'static str,
        /// The code's name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        code: String,
        /// The driver's explanation.
        meaning: String,
    },
}
