//! Finds the model where no `--model` says so.

use std::env;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The model that comes with the project, relative to its root.
const DEFAULT: &str = "models/shakespeare-char";

/// The default model's folder: below `$TOUCHSTONE_ROOT` where that is set; otherwise below the current directory or one above
/// it, or below the program's directory or one above it.
///
/// # Errors
/// [`Error::Invalid`] where it is in none of these places.
pub fn default_model() -> Result<PathBuf> {
    let missing = |path: PathBuf, problem: &str| Error::Invalid {
        path,
        field: "config.json".into(),
        problem: format!("{problem}; pass --model DIR"),
    };
    if let Some(root) = env::var_os("TOUCHSTONE_ROOT") {
        let dir = Path::new(&root).join(DEFAULT);
        return if is_model(&dir) { Ok(dir) } else { Err(missing(dir, "not found below TOUCHSTONE_ROOT")) };
    }
    let starts = [env::current_dir().ok(), env::current_exe().ok()];
    starts
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .map(|ancestor| ancestor.join(DEFAULT))
        .find(|dir| is_model(dir))
        .ok_or_else(|| {
            missing(DEFAULT.into(), "not found from the current directory or the program's upwards")
        })
}

fn is_model(dir: &Path) -> bool {
    dir.join("config.json").is_file()
}
