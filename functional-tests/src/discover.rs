//! Where the cases are. Found at run time: a test executable may run on another machine than the one that built it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The golden cases, below the root.
pub const CASES: &str = "golden/cases";
/// The committed models, below the root.
pub const MODELS: &str = "models";

/// The workspace's root: `TOUCHSTONE_ROOT`, or the nearest folder from the current one upwards that holds [`CASES`] and [`MODELS`].
///
/// # Errors
/// There is none.
pub fn find_root() -> Result<PathBuf> {
    let is_root = |dir: &Path| dir.join(CASES).is_dir() && dir.join(MODELS).is_dir();
    let start = match std::env::var_os("TOUCHSTONE_ROOT") {
        Some(root) if is_root(Path::new(&root)) => return Ok(root.into()),
        Some(root) => root.into(),
        None => {
            let here = std::env::current_dir().unwrap_or_default();
            if let Some(root) = here.ancestors().find(|dir| is_root(dir)) {
                return Ok(root.into());
            }
            here
        }
    };
    Err(Error::NoRoot { start, cases: CASES, models: MODELS })
}

/// Every folder at or below `dir` that holds a `case.json`, sorted. Hidden folders, which hold half-written cases, are left out.
///
/// # Errors
/// A folder that cannot be read.
pub fn find_cases(dir: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |source| Error::Search { path: dir.into(), source };
    if dir.join("case.json").exists() {
        return Ok(vec![dir.into()]);
    }
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // Links are not followed: they could lead in a circle.
        if !hidden && entry.file_type().map_err(unreadable)?.is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort();
    let nested: Vec<_> = folders.iter().map(|folder| find_cases(folder)).collect::<Result<_>>()?;
    Ok(nested.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::find_cases;

    /// Without this, a nested case would be skipped silently, or a half-written one be taken for a case.
    #[test]
    fn finds_cases_at_any_depth_and_leaves_hidden_folders_out() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["b/one", "a/deep/er/two", ".staging/b/three", "a/without"] {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            if !folder.ends_with("without") {
                fs::write(folder.join("case.json"), "{}").unwrap();
            }
        }
        let expected = ["a/deep/er/two", "b/one"].map(|folder| root.path().join(folder));
        assert_eq!(find_cases(root.path()).unwrap(), expected);
        assert_eq!(find_cases(&expected[1]).unwrap(), [expected[1].clone()]);
        assert!(find_cases(&root.path().join("absent")).is_err());
    }
}
