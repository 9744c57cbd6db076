//! Run-time compilation with NVRTC, and the cubins it leaves on disk so that only the first run pays.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

use cudarc::nvrtc::{result as nvrtc, sys};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::libraries::load_nvrtc;

/// The device code: file name and text.
pub const SOURCES: &[(&str, &str)] = &[
    ("barrier.cuh", include_str!("../cu/barrier.cuh")),
    ("batch_attention.cuh", include_str!("../cu/batch_attention.cuh")),
    ("batch_block.cuh", include_str!("../cu/batch_block.cuh")),
    ("batch_helpers.cuh", include_str!("../cu/batch_helpers.cuh")),
    ("batch_layout.cuh", include_str!("../cu/batch_layout.cuh")),
    ("batch_product.cuh", include_str!("../cu/batch_product.cuh")),
    ("batch_ring.cuh", include_str!("../cu/batch_ring.cuh")),
    ("clock.cuh", include_str!("../cu/clock.cuh")),
    ("cluster.cuh", include_str!("../cu/cluster.cuh")),
    ("common.cuh", include_str!("../cu/common.cuh")),
    ("decode_attention.cuh", include_str!("../cu/decode_attention.cuh")),
    ("decode_keys.cuh", include_str!("../cu/decode_keys.cuh")),
    ("decode_layout.cuh", include_str!("../cu/decode_layout.cuh")),
    ("decode_product.cuh", include_str!("../cu/decode_product.cuh")),
    ("decode_sums.cuh", include_str!("../cu/decode_sums.cuh")),
    ("decode_spread.cuh", include_str!("../cu/decode_spread.cuh")),
    ("decode_stages.cuh", include_str!("../cu/decode_stages.cuh")),
    ("decode_warp.cuh", include_str!("../cu/decode_warp.cuh")),
    ("decode_worker.cuh", include_str!("../cu/decode_worker.cuh")),
    ("decode_window.cuh", include_str!("../cu/decode_window.cuh")),
    ("grid_attention.cuh", include_str!("../cu/grid_attention.cuh")),
    ("grid_exchange.cuh", include_str!("../cu/grid_exchange.cuh")),
    ("grid_keys.cuh", include_str!("../cu/grid_keys.cuh")),
    ("grid_model.cuh", include_str!("../cu/grid_model.cuh")),
    ("grid_pick.cuh", include_str!("../cu/grid_pick.cuh")),
    ("grid_product.cuh", include_str!("../cu/grid_product.cuh")),
    ("grid_ring.cuh", include_str!("../cu/grid_ring.cuh")),
    ("grid_share.cuh", include_str!("../cu/grid_share.cuh")),
    ("grid_shared.cuh", include_str!("../cu/grid_shared.cuh")),
    ("grid_step.cuh", include_str!("../cu/grid_step.cuh")),
    ("grid_tile.cuh", include_str!("../cu/grid_tile.cuh")),
    ("grid_words.cuh", include_str!("../cu/grid_words.cuh")),
    ("pick.cuh", include_str!("../cu/pick.cuh")),
    ("layer_weights.cuh", include_str!("../cu/layer_weights.cuh")),
    ("powers.cuh", include_str!("../cu/powers.cuh")),
    ("row.cuh", include_str!("../cu/row.cuh")),
    ("rows.cuh", include_str!("../cu/rows.cuh")),
    ("shard_attention.cuh", include_str!("../cu/shard_attention.cuh")),
    ("shard_layout.cuh", include_str!("../cu/shard_layout.cuh")),
    ("shard_ring.cuh", include_str!("../cu/shard_ring.cuh")),
    ("shard_worker.cuh", include_str!("../cu/shard_worker.cuh")),
    ("spread.cuh", include_str!("../cu/spread.cuh")),
    ("train_attention.cuh", include_str!("../cu/train_attention.cuh")),
    ("train_layout.cuh", include_str!("../cu/train_layout.cuh")),
    ("train_product.cuh", include_str!("../cu/train_product.cuh")),
    ("train_worker.cuh", include_str!("../cu/train_worker.cuh")),
    ("tensor.cuh", include_str!("../cu/tensor.cuh")),
    ("hopper.cuh", include_str!("../cu/hopper.cuh")),
    ("finish.cuh", include_str!("../cu/finish.cuh")),
    ("gelu_rounded.cuh", include_str!("../cu/gelu_rounded.cuh")),
    ("add.cu", include_str!("../cu/add.cu")),
    ("append.cu", include_str!("../cu/append.cu")),
    ("attention.cu", include_str!("../cu/attention.cu")),
    ("attention_mma.cu", include_str!("../cu/attention_mma.cu")),
    ("attention_wgmma.cu", include_str!("../cu/attention_wgmma.cu")),
    ("decode.cu", include_str!("../cu/decode.cu")),
    ("decode_batch.cu", include_str!("../cu/decode_batch.cu")),
    ("decode_batch_pack.cu", include_str!("../cu/decode_batch_pack.cu")),
    ("decode_grid.cu", include_str!("../cu/decode_grid.cu")),
    ("decode_pack.cu", include_str!("../cu/decode_pack.cu")),
    ("decode_shard_sums.cu", include_str!("../cu/decode_shard_sums.cu")),
    ("decode_shards.cu", include_str!("../cu/decode_shards.cu")),
    ("decode_train.cu", include_str!("../cu/decode_train.cu")),
    ("decode_train_pack.cu", include_str!("../cu/decode_train_pack.cu")),
    ("embedding.cu", include_str!("../cu/embedding.cu")),
    ("gelu.cu", include_str!("../cu/gelu.cu")),
    ("layernorm.cu", include_str!("../cu/layernorm.cu")),
    ("linear.cu", include_str!("../cu/linear.cu")),
    ("linear_add.cu", include_str!("../cu/linear_add.cu")),
    ("norm_linear.cu", include_str!("../cu/norm_linear.cu")),
    ("norm_qkv.cu", include_str!("../cu/norm_qkv.cu")),
    ("product_mma.cu", include_str!("../cu/product_mma.cu")),
    ("product_rows.cu", include_str!("../cu/product_rows.cu")),
    ("product_wgmma.cu", include_str!("../cu/product_wgmma.cu")),
    ("sample.cu", include_str!("../cu/sample.cu")),
];

/// Every architecture that the kernels must compile for.
pub const ARCHITECTURES: &[&str] =
    &["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100a", "sm_103a", "sm_120a"];

/// The architecture to compile for on a GPU of this compute capability.
pub(crate) fn architecture((major, minor): (u32, u32)) -> String {
    // From Hopper on, the `a` variant has the instructions that only this very chip has.
    let suffix = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{suffix}")
}

/// What is compiled as one: files of [`SOURCES`], and macros.
#[derive(Clone, Debug)]
pub struct Unit {
    files: Vec<&'static str>,
    defines: Vec<String>,
}

impl Unit {
    /// The kernels of the ops, for any dimensions.
    #[must_use]
    pub fn ops() -> Self {
        let op = |name: &&str| name.ends_with(".cu") && !name.starts_with("decode");
        Self { files: SOURCES.iter().map(|(name, _)| *name).filter(op).collect(), defines: Vec::new() }
    }

    /// Kernels that run a whole model: `files`, for the model of these macros.
    pub(crate) fn decoder(files: &[&'static str], macros: &[(&str, usize)]) -> Self {
        let defines = macros.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Self { files: files.to_vec(), defines }
    }

    /// The same, but decoders read the clock at each handoff if they are `clocked`: see [`crate::Handoff`].
    #[must_use]
    pub fn clocked(mut self, clocked: bool) -> Self {
        self.defines.extend(clocked.then(|| "CLOCKED=1".to_owned()));
        self
    }

    /// The text that includes the files.
    fn main(&self) -> String {
        self.files.iter().map(|name| format!("#include \"{name}\"\n")).collect()
    }

    fn options(&self, arch: &str) -> Vec<String> {
        let general =
            [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--ptxas-options=-v".into()];
        let defines = self.defines.iter().map(|define| format!("--define-macro={define}"));
        general.into_iter().chain(defines).collect()
    }
}

/// What the compiler made.
#[derive(Debug)]
pub struct Compiled {
    /// The loadable image.
    pub cubin: Vec<u8>,
    /// The assembler's report: registers, spills and stack of every kernel.
    pub log: String,
}

/// Compiles `unit` for `arch`, such as `sm_90a`. Needs NVRTC, but no GPU.
///
/// # Errors
/// [`Error::MissingLibrary`] without NVRTC, [`Error::Compile`] with the compiler's words.
pub fn compile(arch: &str, unit: &Unit) -> Result<Compiled> {
    load_nvrtc()?;
    let program = Program::new(&unit.main()).map_err(|error| refused(arch, format!("{error:?}")))?;
    let result = program.compile(&unit.options(arch));
    let log = program.log();
    if result.is_err() {
        return Err(refused(arch, log));
    }
    let cubin = program.cubin().map_err(|error| refused(arch, format!("{error:?}")))?;
    Ok(Compiled { cubin, log })
}

/// `unit` for `arch`, from the cache where it is there and whole, else compiled and left there.
pub(crate) fn cubin(arch: &str, unit: &Unit) -> Result<Vec<u8>> {
    let Some(directory) = cache_directory() else { return Ok(compile(arch, unit)?.cubin) };
    let path = directory.join(format!("{}.cubin", key(arch, unit)));
    if let Some(cubin) = std::fs::read(&path).ok().and_then(whole) {
        return Ok(cubin);
    }
    let cubin = compile(arch, unit)?.cubin;
    // A cache that cannot be written costs the next run a second; it must not fail this one.
    let _ = store(&path, &cubin);
    Ok(cubin)
}

/// Where cubins are kept: `TOUCHSTONE_CACHE`, else `touchstone` below the user's cache directory. None where neither is known.
#[must_use]
pub fn cache_directory() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let user = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    std::env::var_os("TOUCHSTONE_CACHE")
        .map(PathBuf::from)
        .or_else(|| user().map(|user| user.join("touchstone")))
}

/// NVRTC's version. Needs NVRTC.
pub(crate) fn nvrtc_version() -> Result<(i32, i32)> {
    load_nvrtc()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is loaded, and both pointers are to live integers.
    let code = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    code.result().map_err(|error| refused("any", format!("{error:?}")))?;
    Ok((major, minor))
}

fn refused(arch: &str, log: String) -> Error {
    Error::Compile { arch: arch.to_owned(), log: log.trim().to_owned() }
}

/// Names what a cubin depends on: sources and options, with architecture and macros. Not the compiler's version: what it made stays right when
/// it is renewed, and to ask for it loads a hundred megabytes of library at every start.
fn key(arch: &str, unit: &Unit) -> String {
    let mut hash = Sha256::new();
    for (name, text) in SOURCES {
        hash.update(name);
        hash.update(text);
    }
    hash.update(unit.main());
    hash.update(unit.options(arch).join(" "));
    format!("{:x}", hash.finalize())
}

/// The cubin of a cache file, if the checksum in front of it is right.
fn whole(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let cubin = file.split_off(file.len().min(32));
    (file == Sha256::digest(&cubin).as_slice()).then_some(cubin)
}

/// Writes checksum and cubin beside `path` and renames them into place, so that no reader sees half a file.
fn store(path: &std::path::Path, cubin: &[u8]) -> std::io::Result<()> {
    let Some(directory) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(directory)?;
    let temporary = path.with_extension(std::process::id().to_string());
    let checksum = Sha256::digest(cubin);
    std::fs::write(&temporary, [checksum.as_slice(), cubin].concat())?;
    std::fs::rename(&temporary, path)
}

/// A compilation in progress.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(main: &str) -> Result<Self, nvrtc::NvrtcError> {
        let owned = |text: &str| CString::new(text).expect("the sources hold no zero byte");
        let (texts, names): (Vec<_>, Vec<_>) =
            SOURCES.iter().map(|(name, text)| (owned(text), owned(name))).unzip();
        let pointers =
            |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
        let (texts_at, names_at) = (pointers(&texts), pointers(&names));
        let count = i32::try_from(SOURCES.len()).expect("few sources");
        let (main, name) = (owned(main), owned("touchstone.cu"));
        let mut program = std::ptr::null_mut();
        // SAFETY: NVRTC is loaded (`compile` saw to it); every pointer is to a zero-terminated string that outlives the call, which
        // copies them, and both arrays hold `count` entries.
        unsafe {
            let (texts, names) = (texts_at.as_ptr(), names_at.as_ptr());
            sys::nvrtcCreateProgram(&mut program, main.as_ptr(), name.as_ptr(), count, texts, names)
                .result()?;
        }
        Ok(Self(program))
    }

    fn compile(&self, options: &[String]) -> Result<(), nvrtc::NvrtcError> {
        // SAFETY: the program is live until drop; the options are copied by the callee.
        unsafe { nvrtc::compile_program(self.0, options) }
    }

    fn log(&self) -> String {
        // SAFETY: the program is live; the log NVRTC returns is zero-terminated and owned by the vector.
        let log = unsafe { nvrtc::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.iter().map(|c| *c as u8).collect();
        CStr::from_bytes_until_nul(&bytes).map(|log| log.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn cubin(&self) -> Result<Vec<u8>, nvrtc::NvrtcError> {
        let mut size = 0;
        // SAFETY: the program is live and compiled for a real architecture; the vector has the size that NVRTC named.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &mut size).result()?;
            let mut cubin = vec![0u8; size];
            sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result()?;
            Ok(cubin)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram, destroyed once.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, a damaged cache file would be handed to the driver.
    #[test]
    fn a_damaged_cache_file_is_refused() {
        let directory = std::env::temp_dir().join(format!("touchstone-cache-{}", std::process::id()));
        let path = directory.join("x.cubin");
        store(&path, b"image").unwrap();
        let mut file = std::fs::read(&path).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(whole(file.clone()).as_deref(), Some(&b"image"[..]));
        *file.last_mut().unwrap() ^= 1;
        assert_eq!(whole(file), None);
        assert_eq!(whole(vec![1, 2, 3]), None);
    }
}
