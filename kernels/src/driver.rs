//! The driver's results as ours.

use cudarc::driver::DriverError;

use crate::error::{Error, Result};

/// Turns a driver's result into ours, naming the call.
pub(crate) fn check<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|error| {
        let text = |name: Result<&std::ffi::CStr, DriverError>| {
            name.map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into_owned())
        };
        Error::Driver { call, code: text(error.error_name()), meaning: text(error.error_string()) }
    })
}
