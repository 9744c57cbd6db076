//! The table of entry points: every kernel there is, loaded when a device is opened and never looked up by name later.

macro_rules! entries {
    ($($name:ident)*) => {
        /// A kernel's entry point; the variant's name is the function's.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Entry { $($name),* }

        impl Entry {
            /// All entry points, in the order of their numbers.
            pub const ALL: &[Entry] = &[$(Entry::$name),*];

            /// The function's name in the device code.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Entry::$name => stringify!($name)),* }
            }
        }
    };
}

entries! {
    add_f32 add_bf16
    append_f32 append_bf16
    attention_f32 attention_bf16 attention_mma_bf16 attention_mma_wide_bf16 attention_wgmma_bf16
    embedding_f32 embedding_bf16
    gelu_f32 gelu_bf16
    layernorm_f32 layernorm_bf16 layernorm_row_bf16
    linear_warp_f32 linear_warp_bf16 logits_warp_bf16
    linear_tile_f32 linear_tile_bf16 logits_tile_bf16
    linear_mma_bf16
    linear_add_f32 linear_add_bf16 linear_add_mma_bf16 linear_add_wgmma_bf16
    linear_gelu_mma_bf16 linear_gelu_wgmma_bf16
    norm_gelu_f32 norm_gelu_bf16
    norm_logits_f32 norm_logits_bf16
    norm_qkv_f32 norm_qkv_bf16
    qkv_mma_bf16 qkv_wgmma_bf16
    sample_f32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Entry;
    use crate::compile::SOURCES;

    /// Without this, a kernel missing from the table, or a name without a kernel, would show only on a GPU.
    #[test]
    fn the_table_names_exactly_the_kernels_in_the_sources() {
        let kernels: BTreeSet<&str> = SOURCES
            .iter()
            .flat_map(|(_, text)| text.split("extern \"C\" __global__").skip(1))
            .map(|rest| {
                let rest = rest.trim_start().trim_start_matches("void").trim_start();
                let rest = match rest.strip_prefix("__launch_bounds__(") {
                    Some(bounds) => bounds.split_once(')').expect("bounds end").1.trim_start(),
                    None => rest,
                };
                rest.split([' ', '(']).next().expect("a name follows")
            })
            .collect();
        let table: BTreeSet<&str> = Entry::ALL.iter().map(|entry| entry.name()).collect();
        assert_eq!(kernels, table);
        assert_eq!(table.len(), Entry::ALL.len());
    }
}
