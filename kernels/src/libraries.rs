//! Finds CUDA's shared libraries, so that users need not set `LD_LIBRARY_PATH`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// What to do where the driver is missing.
pub(crate) const DRIVER_REMEDY: &str = "install the NVIDIA driver, or run on the CPU with --device cpu";
/// What to do where the compiler is missing.
pub(crate) const NVRTC_REMEDY: &str = "install the CUDA toolkit 13 (or `pip install nvidia-cuda-nvrtc`) and point TOUCHSTONE_NVRTC at the folder that holds libnvrtc.so";

/// Whether libcuda can be loaded. cudarc panics where it cannot, so this comes first.
pub(crate) fn driver_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        // cudarc closes the library that it finds and loads it anew for its first call: what is held open is loaded once.
        keep(Path::new("libcuda.so.1"));
        // SAFETY: loading libcuda runs its initialisers, which is what any CUDA program does; nothing is called in it.
        unsafe { cudarc::driver::sys::is_culib_present() }
    })
}

/// Loads NVRTC from the first place that has it.
///
/// # Errors
/// [`Error::MissingLibrary`], with the remedy.
pub(crate) fn load_nvrtc() -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    let loaded = *LOADED.get_or_init(|| {
        for directory in nvrtc_directories() {
            if preload(&directory) {
                break;
            }
        }
        // SAFETY: loading libnvrtc runs its initialisers only; a library preloaded above answers to the same name.
        unsafe { cudarc::nvrtc::sys::is_culib_present() }
    });
    if loaded { Ok(()) } else { Err(Error::MissingLibrary { library: "libnvrtc", remedy: NVRTC_REMEDY }) }
}

fn nvrtc_directories() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::env::var_os("TOUCHSTONE_NVRTC").map(PathBuf::from).into_iter().collect();
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        found.extend(std::env::var_os(variable).map(|home| Path::new(&home).join("lib64")));
    }
    found.push("/usr/local/cuda/lib64".into());
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os);
    for environment in environments {
        let pythons = std::fs::read_dir(Path::new(&environment).join("lib")).into_iter().flatten().flatten();
        for python in pythons {
            let nvidia = python.path().join("site-packages/nvidia");
            found.extend(["cu13/lib", "cuda_nvrtc/lib"].map(|lib| nvidia.join(lib)));
        }
    }
    found
}

/// Loads the builtins and then the compiler from `directory`, and keeps them for the life of the process.
fn preload(directory: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(directory) else { return false };
    let mut names: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
    // `libnvrtc-builtins` sorts before `libnvrtc.so`, and must be there when the compiler asks for it.
    names.sort();
    let wanted = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (name.starts_with("libnvrtc-builtins.so.13") || name.starts_with("libnvrtc.so.13"))
            && !name.contains(".alt.")
    };
    names.iter().filter(|path| wanted(path) && keep(path)).count() > 0
}

/// Loads a library, if it is there, and keeps it for the life of the process.
fn keep(path: &Path) -> bool {
    // SAFETY: these are NVIDIA's libraries, named by the user or found in their usual places; their initialisers have no
    // preconditions, and the handle is never closed.
    unsafe { libloading::Library::new(path) }.map(std::mem::forget).is_ok()
}
