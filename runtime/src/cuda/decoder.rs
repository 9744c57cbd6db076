//! The decoder: a whole generation in one launch, for models that a cluster of blocks can run.

use touchstone_kernels::{self as kernels, DecoderKernels, DecoderLayout, Element, LayerWeights, ModelShape};

use super::Cuda;
use crate::backend::{Backend, DecodeState, Weights};
use crate::config::Config;
use crate::error::Result;
use crate::modules::{LayerCache, Norm};
use crate::plan::{Capacity, Entry, Kind};

/// The decoder's own buffers: the weights, packed in the order of their use, and what follows from them.
pub(super) fn plan(kernels: &DecoderKernels) -> [Entry; 2] {
    let layout = kernels.layout();
    [
        Entry::new("decoder.stream", &[layout.stream_len()], Kind::Weight),
        Entry::new("decoder.constants", &[layout.constants_len()], Kind::Wide),
    ]
}

impl<E: Element> Cuda<E> {
    /// The decoder's kernels for this model, if it has a layout and the GPU room for it.
    pub(super) fn decoder_kernels(
        &self,
        config: &Config,
        capacity: Capacity,
    ) -> Result<Option<DecoderKernels>> {
        let shape = ModelShape {
            channels: config.hidden_size,
            heads: config.num_attention_heads,
            width: config.intermediate_size,
            layers: config.num_hidden_layers,
            context: config.max_position_embeddings,
            vocab: config.vocab_size,
        };
        let layout = DecoderLayout::new(shape, size_of::<E>()).filter(|_| capacity.batch == 1);
        Ok(match layout {
            Some(layout) => DecoderKernels::load(self.device(), layout)?,
            None => None,
        })
    }
}

impl<E: Element> Cuda<E>
where
    Self: Backend<Weight = kernels::Buffer<E>>,
{
    /// Makes the decoder and packs the weights.
    pub(super) fn make_decoder(
        &self,
        config: &Config,
        weights: &Weights<Self>,
        capacity: Capacity,
    ) -> Result<Option<kernels::Decoder<E>>> {
        let Some(kernels) = self.decoder_kernels(config, capacity)? else { return Ok(None) };
        let [stream, constants] = plan(&kernels);
        let (stream, constants) = (self.zeroed(&stream)?, self.zeroed(&constants)?);
        let layers = weights.blocks.iter().map(|(attention, mlp)| LayerWeights {
            norm_1: parameters(&attention.norm),
            qkvo: {
                let attention = &attention.attention;
                [&attention.q, &attention.k, &attention.v, &attention.out]
            },
            out_bias: &attention.attention.out_bias,
            norm_2: parameters(&mlp.norm),
            up: [&mlp.mlp.up, &mlp.mlp.up_bias],
            down: [&mlp.mlp.down, &mlp.mlp.down_bias],
        });
        let final_norm = parameters(&weights.final_norm);
        Ok(Some(kernels::Decoder::new(kernels, stream, constants, layers, final_norm, &weights.token)?))
    }
}

/// A norm's weight and bias.
fn parameters<B: Backend>(norm: &Norm<B>) -> [&B::Weight; 2] {
    [&norm.weight, &norm.bias]
}

/// Runs `steps` decode steps.
pub(super) fn run<E: Element>(
    decoder: &mut kernels::Decoder<E>,
    weights: &Weights<Cuda<E>>,
    state: DecodeState<'_, Cuda<E>>,
    steps: usize,
) -> Result<()> {
    let DecodeState { caches, tokens, cursor, logits, outbox } = state;
    let generation = kernels::Generation {
        token: &weights.token,
        position: &weights.position,
        logits,
        tokens,
        cursor,
        outbox,
        eps: weights.final_norm.eps as f32,
    };
    let caches = caches.iter_mut().map(|LayerCache { keys, values }| [keys, values]);
    Ok(decoder.run(generation, caches, steps)?)
}
