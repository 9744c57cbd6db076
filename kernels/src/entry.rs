//! The table of entry points: every kernel there is, loaded when a device is opened and never looked up by name later.

/// An enum of entry points: the variants' names are the functions'.
macro_rules! entries {
    ($(#[$meta:meta])* $table:ident: $($name:ident)*) => {
        $(#[$meta])*
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $table { $($name),* }

        impl $table {
            /// All entry points, in the order of their numbers.
            pub const ALL: &[$table] = &[$($table::$name),*];

            /// The function's name in the device code.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($table::$name => stringify!($name)),* }
            }
        }
    };
}

entries! {
    /// A kernel of an op.
    Entry:
    add_f32 add_bf16
    append_f32 append_bf16
    attention_f32 attention_bf16 attention_mma_bf16 attention_mma_wide_bf16 attention_wgmma_bf16
    embedding_f32 embedding_bf16
    gelu_f32 gelu_bf16
    layernorm_f32 layernorm_bf16 layernorm_row_bf16
    linear_warp_f32 linear_warp_bf16 logits_warp_bf16
    linear_tile_f32 linear_tile_bf16 logits_tile_bf16
    linear_mma_bf16
    linear_add_f32 linear_add_bf16 linear_add_rows_f32 linear_add_rows_bf16 linear_add_mma_bf16 linear_add_wgmma_bf16
    linear_gelu_rows_bf16 linear_gelu_mma_bf16 linear_gelu_wgmma_bf16 linear_gelu_wgmma_narrow_bf16
    norm_gelu_f32 norm_gelu_bf16 norm_gelu_rows_f32 norm_gelu_rows_bf16
    norm_logits_f32 norm_logits_bf16 norm_logits_rows_f32 norm_logits_rows_bf16
    norm_qkv_f32 norm_qkv_bf16 norm_qkv_rows_f32 norm_qkv_rows_bf16
    qkv_rows_bf16 qkv_mma_bf16 qkv_wgmma_bf16 qkv_wgmma_narrow_bf16
    sample_f32 sample_wide_f32
}

entries! {
    /// A kernel that is compiled for one model and precision: the device code's name without the precision.
    DecoderEntry:
    decode decode_pack decode_constants decode_head
    decode_grid
    decode_shards decode_shard_sums
    decode_batch decode_batch_pack decode_batch_constants decode_batch_head decode_batch_means
}

impl DecoderEntry {
    /// The precisions that it is compiled for.
    #[must_use]
    pub fn precisions(self) -> &'static [&'static str] {
        if self.name().starts_with("decode_batch") { &["bf16"] } else { &["f32", "bf16"] }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{DecoderEntry, Entry};
    use crate::compile::SOURCES;

    /// Names of the kernels in the files whose names begin with `decode`, or in the others.
    fn kernels(decode: bool) -> BTreeSet<&'static str> {
        SOURCES
            .iter()
            .filter(|(file, _)| file.starts_with("decode") == decode)
            .flat_map(|(_, text)| text.split("extern \"C\" __global__").skip(1))
            .map(|rest| {
                let rest = rest.trim_start().trim_start_matches("void").trim_start();
                let rest = match rest.strip_prefix("__launch_bounds__(") {
                    Some(bounds) => bounds.split_once(')').expect("bounds end").1.trim_start(),
                    None => rest,
                };
                rest.trim_start_matches("ENTRY(").split([' ', '(', ')']).next().expect("a name follows")
            })
            .collect()
    }

    /// Without this, a kernel missing from a table, or a name without a kernel, would show only on a GPU.
    #[test]
    fn the_tables_name_exactly_the_kernels_in_the_sources() {
        let table: BTreeSet<&str> = Entry::ALL.iter().map(|entry| entry.name()).collect();
        assert_eq!(kernels(false), table);
        assert_eq!(table.len(), Entry::ALL.len());
        let table: BTreeSet<&str> = DecoderEntry::ALL.iter().map(|entry| entry.name()).collect();
        assert_eq!(kernels(true), table);
    }
}
