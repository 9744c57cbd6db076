//! What the assembler made of a kernel: its machine code for sm_90a, an instruction in 16 bytes, as `nvdisasm` shows it.

use object::{Object, ObjectSection};

/// How many loads that all of the GPU must see alike (`LDG.STRONG.GPU`) a kernel has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StrongLoads {
    /// Of 32 bits.
    pub words: usize,
    /// Of 64 and of 128 bits.
    pub wider: usize,
}

/// Those of a kernel of a cubin; an error where it is not there.
pub fn strong_loads(cubin: &[u8], kernel: &str) -> Result<StrongLoads, String> {
    let file = object::File::parse(cubin).map_err(|error| format!("cubin: {error}"))?;
    let section = file.section_by_name(&format!(".text.{kernel}")).ok_or(format!("no {kernel}"))?;
    let code = section.data().map_err(|error| format!("{kernel}: {error}"))?;
    let (instructions, _) = code.as_chunks::<16>();
    let mut loads = StrongLoads::default();
    for instruction in instructions {
        match width(instruction) {
            Some(4) => loads.words += 1,
            Some(_) => loads.wider += 1,
            None => {}
        }
    }
    Ok(loads)
}

/// Bytes that an instruction loads from global memory, if it does, and in this way: the lower twelve bits say `LDG`, and of byte 9 the upper four
/// that all of the GPU must see it alike, the others how wide it is.
fn width(instruction: &[u8; 16]) -> Option<usize> {
    let opcode = u16::from_le_bytes([instruction[0], instruction[1]]) & 0xfff;
    match (opcode, instruction[9]) {
        (0x981, 0xf9) => Some(4),
        (0x981, 0xfb) => Some(8),
        (0x981, 0xfd) => Some(16),
        _ => None,
    }
}
