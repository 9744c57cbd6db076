//! Compiles every kernel for every architecture. NVRTC needs no GPU, so this runs in CI; without NVRTC it is ignored, not passed,
//! unless `TOUCHSTONE_REQUIRE_NVRTC=1` makes its absence a failure.

mod machine_code;

use libtest_mimic::{Arguments, Failed, Trial};
use touchstone_kernels::{
    ARCHITECTURES, BatchLayout, ClusterLayout, Compiled, DecoderEntry, Entry, Finding, GridLayout,
    ModelShape, ShardLayout, Unit, compile, probe,
};

use machine_code::{StrongLoads, strong_loads};

fn main() {
    let absent = matches!(probe().nvrtc, Finding::Missing { .. });
    let required = std::env::var_os("TOUCHSTONE_REQUIRE_NVRTC").is_some();
    if absent && !required {
        eprintln!("not checked: libnvrtc was not found");
    }
    let trials = vec![
        Trial::test("every_kernel_compiles_for_every_architecture_without_spilling", every_kernel_compiles),
        Trial::test("clusters_compile_for_every_architecture_with_clusters", clusters_compile),
        Trial::test("batches_compile_for_every_architecture_with_clusters", batches_compile),
        Trial::test("grids_compile_for_every_generation", grids_compile),
        Trial::test("shards_compile_for_every_architecture_with_clusters", shards_compile),
        Trial::test("decoders_that_read_the_clock_compile", clocked_compile),
    ];
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(absent && !required)).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Without this, a kernel that only newer or older GPUs accept, one that spills registers, or one whose products wait for each other would
/// show on somebody else's machine, or as slowness alone.
fn every_kernel_compiles() -> Result<(), Failed> {
    for arch in ARCHITECTURES {
        let log = compile(arch, &Unit::ops())?.log;
        // The assembler waits after each warpgroup product where it cannot see that nobody touches the sums meanwhile.
        if let Some(line) = log.lines().find(|line| line.contains("serialized")) {
            return Err(format!("{arch}: {line}").into());
        }
        for entry in Entry::ALL {
            must_not_spill(arch, &log, entry.name())?;
        }
    }
    Ok(())
}

/// Architectures with clusters as large and shared memory as much as a decoder needs.
const CLUSTERED: &[&str] = &["sm_90a", "sm_100a", "sm_103a"];

/// Models that a cluster decodes.
fn narrow_models() -> [ModelShape; 3] {
    let small = ModelShape { channels: 128, heads: 4, width: 512, layers: 6, context: 256, vocab: 65 };
    [
        small,
        ModelShape { channels: 256, width: 1024, context: 1024, vocab: 107, ..small },
        ModelShape { channels: 384, heads: 6, width: 1536, ..small },
    ]
}

/// The same for the kernels that are compiled for one model; they are tuned for Hopper's registers, and must not spill there. Without
/// this, dimensions that the device code refuses would show on a GPU.
fn clusters_compile() -> Result<(), Failed> {
    use DecoderEntry as Kernel;
    let [small, ..] = narrow_models();
    // As much as stages have room for, and fewer layers than there are stages; heads of half the width in a train.
    let [most, least] =
        [ModelShape { layers: 8, vocab: 128, ..small }, ModelShape { layers: 1, context: 41, ..small }];
    let long = ModelShape { channels: 384, heads: 12, width: 1536, layers: 6, ..most };
    let shapes = narrow_models().into_iter().chain([most, least, long]);
    let kernels = [Kernel::decode, Kernel::decode_pack, Kernel::decode_constants, Kernel::decode_head];
    for (shape, element_bytes) in shapes.flat_map(|shape| [(shape, 2), (shape, 4)]) {
        let layouts: Vec<_> = ClusterLayout::all(shape, element_bytes).collect();
        if layouts.is_empty() {
            return Err(format!("{shape:?}: no layout").into());
        }
        for (layout, arch) in
            layouts.iter().flat_map(|layout| CLUSTERED.iter().map(move |arch| (layout, arch)))
        {
            let cubin = compile_decoder(arch, &layout.unit(), element_bytes, &kernels)
                .map_err(|error| format!("{layout:?}: {error}"))?;
            if layout.is_train() && arch.starts_with("sm_90") {
                must_not_split_words(&cubin, "decode_bf16")?;
            }
        }
    }
    Ok(())
}

/// The same for the kernels of batches: of the models of clusters, of the narrowest, and of one with as much of everything as there may be.
fn batches_compile() -> Result<(), Failed> {
    use DecoderEntry as Kernel;
    let [small, _, wide] = narrow_models();
    let others =
        [ModelShape { width: 128, context: 41, ..small }, ModelShape { layers: 13, vocab: 256, ..wide }];
    let kernels = [
        Kernel::decode_batch,
        Kernel::decode_batch_pack,
        Kernel::decode_batch_constants,
        Kernel::decode_batch_head,
        Kernel::decode_batch_means,
    ];
    for shape in narrow_models().into_iter().chain(others) {
        let layout = BatchLayout::new(shape, 2).ok_or("no layout")?;
        for arch in CLUSTERED {
            compile_decoder(arch, &layout.unit(), 2, &kernels)
                .map_err(|error| format!("{shape:?}: {error}"))?;
        }
    }
    Ok(())
}

/// Architectures, each with the multiprocessors and the shared memory of one of its GPUs.
const MACHINES: &[(&str, usize, usize)] = &[
    ("sm_80", 108, 166_912),
    ("sm_90a", 132, 232_448),
    ("sm_100a", 148, 232_448),
    ("sm_120a", 170, 101_376),
];

/// The same for the kernel over the whole GPU: a model that every generation has room for, and on Hopper smaller and larger ones.
fn grids_compile() -> Result<(), Failed> {
    let wide = ModelShape { channels: 768, heads: 8, width: 3072, layers: 12, context: 256, vocab: 95 };
    let narrow = ModelShape { channels: 128, heads: 4, width: 128, layers: 2, context: 41, vocab: 37 };
    let small = ModelShape { channels: 384, heads: 6, width: 1536, layers: 6, context: 256, vocab: 65 };
    let long = ModelShape { heads: 12, context: 1024, vocab: 50257, ..wide };
    let largest = ModelShape { channels: 1600, heads: 25, width: 6400, layers: 48, ..long };
    for (arch, blocks, shared_bytes) in MACHINES {
        let hopper = arch.starts_with("sm_90");
        let shapes: &[ModelShape] = if hopper { &[wide, narrow, small, long, largest] } else { &[wide] };
        for (shape, element_bytes) in shapes.iter().flat_map(|shape| [(*shape, 2), (*shape, 4)]) {
            let layout = GridLayout::new(shape, element_bytes, *blocks, *shared_bytes);
            // In float32, neither the largest nor the least shared memory leaves room for a ring.
            let refused = element_bytes == 4 && (shape == largest || *arch == "sm_120a");
            let Some(layout) = layout.filter(|_| !refused) else {
                if layout.is_none() && refused {
                    continue;
                }
                return Err(format!("{arch}: {shape:?} of {element_bytes} bytes: {layout:?}").into());
            };
            compile_decoder(arch, &layout.unit(), element_bytes, &[DecoderEntry::decode_grid])
                .map_err(|error| format!("{shape:?}: {error}"))?;
        }
    }
    Ok(())
}

/// The same for shards: of models wide and narrow, on a GPU that holds seven clusters, as an H200 does, and on one that holds eight.
fn shards_compile() -> Result<(), Failed> {
    let wide = ModelShape { channels: 768, heads: 8, width: 3072, layers: 12, context: 256, vocab: 95 };
    let narrow = ModelShape { channels: 128, heads: 4, width: 128, layers: 2, context: 41, vocab: 37 };
    let small = ModelShape { channels: 384, heads: 6, width: 1536, layers: 6, context: 256, vocab: 65 };
    let long = ModelShape { heads: 12, context: 1024, vocab: 50257, ..wide };
    let largest = ModelShape { channels: 1600, heads: 25, width: 6400, layers: 48, ..long };
    let hopper = [wide, narrow, small, long, largest].map(|shape| (shape, 7, "sm_90a"));
    let others = [(wide, 8, "sm_90a"), (wide, 8, "sm_100a"), (wide, 8, "sm_103a")];
    for (shape, clusters, arch) in hopper.into_iter().chain(others) {
        for element_bytes in [2, 4] {
            let layout = ShardLayout::new(shape, element_bytes, clusters, 232_448);
            // In float32, the largest leaves no room for a ring.
            let Some(layout) = layout.filter(|_| element_bytes == 2 || shape != largest) else {
                if layout.is_none() && element_bytes == 4 {
                    continue;
                }
                return Err(format!("{shape:?} of {element_bytes} bytes: {layout:?}").into());
            };
            let kernels = [DecoderEntry::decode_shards, DecoderEntry::decode_shard_sums];
            compile_decoder(arch, &layout.unit(), element_bytes, &kernels)
                .map_err(|error| format!("{shape:?}: {error}"))?;
        }
    }
    Ok(())
}

/// Compiles kernels for elements of so many bytes; on Hopper they must not spill.
fn compile_decoder(
    arch: &str,
    unit: &Unit,
    element_bytes: usize,
    kernels: &[DecoderEntry],
) -> Result<Vec<u8>, String> {
    let Compiled { cubin, log } = compile(arch, unit).map_err(|error| error.to_string())?;
    let suffix = if element_bytes == 2 { "bf16" } else { "f32" };
    for kernel in kernels.iter().filter(|_| arch.starts_with("sm_90")) {
        let name = format!("{}_{suffix}", kernel.name());
        must_not_spill(arch, &log, &name)?;
        if [DecoderEntry::decode_grid, DecoderEntry::decode_shards].contains(kernel) {
            must_not_split_words(&cubin, &name)?;
        }
    }
    Ok(cubin)
}

/// Words between blocks carry their epoch with their values, and are read as one. Without this, a reader that needs only a part of such a word is
/// given two loads by the assembler, which may see different words: an old value that passes for new.
fn must_not_split_words(cubin: &[u8], kernel: &str) -> Result<(), String> {
    match strong_loads(cubin, kernel)? {
        StrongLoads { words: 0, wider: 1.. } => Ok(()),
        loads => Err(format!("{kernel}: {loads:?}: expected words of 64 bits and more alone")),
    }
}

fn must_not_spill(arch: &str, log: &str, kernel: &str) -> Result<(), String> {
    let properties = format!("Function properties for {kernel}\n");
    let report = log.split(&properties).nth(1).ok_or(format!("{arch}: no {kernel}"))?;
    let line = report.lines().next().unwrap_or_default();
    if line.contains(" 0 bytes spill stores") && line.contains(" 0 bytes spill loads") {
        return Ok(());
    }
    Err(format!("{arch}: {kernel} spills: {line}"))
}

/// The same for decoders that read the clock, and each has names for its handoffs. Without this, where time goes could not be asked any more, and
/// nobody would know before asking.
fn clocked_compile() -> Result<(), Failed> {
    let [small, _, broad] = narrow_models();
    let wide = ModelShape { channels: 768, heads: 8, width: 3072, layers: 12, context: 256, vocab: 95 };
    let clusters = [small, broad].into_iter().flat_map(|shape| ClusterLayout::all(shape, 2));
    let clusters = clusters.map(|layout| layout.unit());
    let others = [
        BatchLayout::new(small, 2).ok_or("no layout")?.unit(),
        ShardLayout::new(wide, 2, 7, 232_448).ok_or("no layout")?.unit(),
    ];
    for unit in clusters.chain(others) {
        let (clocked, plain) = (unit.clone().clocked(true), unit);
        let named = |unit: &Unit| -> Result<bool, Failed> {
            Ok(compile("sm_90a", unit)?.cubin.windows(11).any(|bytes| bytes == b"clock_names"))
        };
        if !named(&clocked)? || named(&plain)? {
            return Err(format!(
                "{clocked:?}: names of handoffs are where no clock is read, or the other way round"
            )
            .into());
        }
    }
    Ok(())
}
