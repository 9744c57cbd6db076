//! The memory plan: the one list of device buffers, computed from the config before anything is allocated.
//!
//! Every buffer of a [`crate::Model`] is made from an [`Entry`] of this list, so what the plan adds up to is what the device holds.

use crate::backend::{CURSOR_LEN, OUTBOX_ROWS};
use crate::config::Config;

/// What a buffer holds, which decides how wide its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A parameter, in the working precision.
    Weight,
    /// Activations and the KV cache, in the working precision.
    Working,
    /// The residual stream and the logits: at least float32.
    Wide,
    /// Token ids and counters: u32.
    Ids,
}

/// Element widths of a backend, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// The dtype's name as the golden cases write it: `f32`, `f64`, `bf16`.
    pub name: &'static str,
    /// Bytes of a working element and of a weight.
    pub working_bytes: usize,
    /// Bytes of a wide element.
    pub wide_bytes: usize,
}

impl Precision {
    /// Bytes of one element of `kind`.
    #[must_use]
    pub fn element_bytes(self, kind: Kind) -> usize {
        match kind {
            Kind::Weight | Kind::Working => self.working_bytes,
            Kind::Wide => self.wide_bytes,
            Kind::Ids => 4,
        }
    }
}

/// One buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A weight's checkpoint name, or what the buffer holds.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What it holds.
    pub kind: Kind,
}

impl Entry {
    /// An entry.
    #[must_use]
    pub fn new(name: impl Into<String>, shape: &[usize], kind: Kind) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), kind }
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes on a backend of this precision.
    #[must_use]
    pub fn bytes(&self, precision: Precision) -> usize {
        self.elements() * precision.element_bytes(self.kind)
    }
}

/// Which rows of a forward pass get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// Every position: what tests and scoring need.
    All,
    /// The last position of each sequence: what generation needs.
    Last,
}

/// The largest forward pass that a model is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// B: sequences at once.
    pub batch: usize,
    /// T: new positions at once.
    pub time: usize,
    /// Rows of logits kept.
    pub logits: LogitRows,
}

/// Every parameter of the model, in the checkpoint's order of names and shapes.
#[must_use]
pub fn weights(config: &Config) -> Vec<Entry> {
    let (c, f) = (config.hidden_size, config.intermediate_size);
    let weight = |name: String, shape: &[usize]| Entry::new(name, shape, Kind::Weight);
    let mut entries = vec![
        weight("embedding.token.weight".into(), &[config.vocab_size, c]),
        weight("embedding.position.weight".into(), &[config.max_position_embeddings, c]),
    ];
    for i in 0..config.num_hidden_layers {
        let block: [(&str, &[usize]); 13] = [
            ("ln1.weight", &[c]),
            ("ln1.bias", &[c]),
            ("attention.q.weight", &[c, c]),
            ("attention.k.weight", &[c, c]),
            ("attention.v.weight", &[c, c]),
            ("attention.out.weight", &[c, c]),
            ("attention.out.bias", &[c]),
            ("ln2.weight", &[c]),
            ("ln2.bias", &[c]),
            ("mlp.up.weight", &[f, c]),
            ("mlp.up.bias", &[f]),
            ("mlp.down.weight", &[c, f]),
            ("mlp.down.bias", &[c]),
        ];
        entries.extend(block.iter().map(|(name, shape)| weight(format!("blocks.{i}.{name}"), shape)));
    }
    entries.push(weight("final_norm.weight".into(), &[c]));
    entries.push(weight("final_norm.bias".into(), &[c]));
    entries
}

/// The KV cache: one pair of buffers a block.
#[must_use]
pub fn caches(config: &Config, batch: usize) -> Vec<Entry> {
    let shape = [batch, config.num_attention_heads, config.max_position_embeddings, config.head_size()];
    (0..config.num_hidden_layers)
        .flat_map(|i| {
            ["keys", "values"].map(|name| Entry::new(format!("blocks.{i}.{name}"), &shape, Kind::Working))
        })
        .collect()
}

/// The intermediates of one block, shared by all blocks.
#[must_use]
pub fn scratch(channels: usize, width: usize, capacity: Capacity) -> Vec<Entry> {
    let rows = capacity.batch * capacity.time;
    let working = |name: &str, columns: usize| Entry::new(name, &[rows, columns], Kind::Working);
    vec![
        working("normed", channels),
        working("q", channels),
        working("k", channels),
        working("v", channels),
        working("core", channels),
        working("out", channels),
        working("up", width),
        working("gelu", width),
    ]
}

/// The state around the blocks: token ids, cursors, residual stream and logits.
#[must_use]
pub fn state(config: &Config, capacity: Capacity) -> Vec<Entry> {
    let rows = capacity.batch * capacity.time;
    let logit_rows = match capacity.logits {
        LogitRows::All => rows,
        LogitRows::Last => capacity.batch,
    };
    vec![
        Entry::new("tokens", &[rows], Kind::Ids),
        Entry::new("cursor", &[capacity.batch, CURSOR_LEN], Kind::Ids),
        Entry::new("residual", &[rows, config.hidden_size], Kind::Wide),
        Entry::new("logits", &[logit_rows, config.vocab_size], Kind::Wide),
    ]
}

/// Slots of a model's outbox: one sequence may be decoded up to the end of its context before anybody takes a token.
#[must_use]
pub fn outbox_slots(config: &Config, capacity: Capacity) -> usize {
    if capacity.batch == 1 { OUTBOX_ROWS.max(config.max_position_embeddings) } else { OUTBOX_ROWS }
}

/// The whole plan of a model, but for [`crate::Backend::decoder_plan`].
#[must_use]
pub fn plan(config: &Config, capacity: Capacity) -> Vec<Entry> {
    let mut entries = weights(config);
    entries.extend(caches(config, capacity.batch));
    entries.extend(scratch(config.hidden_size, config.intermediate_size, capacity));
    entries.extend(state(config, capacity));
    entries
}

/// Bytes of all entries on a backend of this precision.
#[must_use]
pub fn total_bytes(entries: &[Entry], precision: Precision) -> usize {
    entries.iter().map(|entry| entry.bytes(precision)).sum()
}

/// Bytes that a decode step at `past` cached positions cannot avoid reading: every weight (of the position embedding, one row) and the
/// filled part of the cache.
#[must_use]
pub fn token_bytes(config: &Config, precision: Precision, weight_bytes: usize, past: usize) -> usize {
    let unread = (config.max_position_embeddings - 1) * config.hidden_size;
    let position_bytes = 2 * config.num_hidden_layers * config.hidden_size * precision.working_bytes;
    let past = past.min(config.max_position_embeddings);
    (config.parameters() - unread) * weight_bytes + past * position_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, the share of the bandwidth limit could count bytes twice, or forget the cache.
    #[test]
    fn a_token_reads_the_weights_once_and_the_filled_cache() {
        let text = r#"{"vocab_size": 65, "max_position_embeddings": 256, "hidden_size": 128, "num_attention_heads": 4,
            "intermediate_size": 512, "num_hidden_layers": 6, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
            "tie_word_embeddings": true, "model_type": "touchstone_gpt", "dtype": "float32"}"#;
        let config = Config::parse(text, "config.json".as_ref()).unwrap();
        let precision = Precision { name: "f32", working_bytes: 4, wide_bytes: 4 };
        // 1,228,672 parameters, as the model's card counts them, of which 255 position rows are not read.
        let weights = 1_228_672 - 255 * 128;
        assert_eq!(token_bytes(&config, precision, 4, 0), 4 * weights);
        assert_eq!(token_bytes(&config, precision, 2, 10), 2 * weights + 10 * 6 * 2 * 128 * 4);
        assert_eq!(token_bytes(&config, precision, 4, 300), token_bytes(&config, precision, 4, 256));
    }
}
