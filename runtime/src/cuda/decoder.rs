//! The decoder: a whole generation in one launch, by a cluster of blocks where a model is small enough, a batch by several, else by the whole GPU.

use touchstone_kernels::{
    self as kernels, BatchDecoder, BatchKernels, BatchLayout, ClusterDecoder, ClusterKernels, ClusterLayout,
    DecoderKernels, Element, GridDecoder, GridKernels, GridLayout, LayerState, LayerWeights, ModelShape,
    ShardLayout, Spread,
};

use super::Cuda;
use crate::backend::{Backend, DecodeState, Weights};
use crate::config::Config;
use crate::error::Result;
use crate::modules::{AttentionSublayer, LayerCache, MlpSublayer, Norm};
use crate::plan::{Capacity, Entry, Kind};
use crate::taps::Path;

/// The decoder's own buffers.
pub(super) fn plan<E: Element>(kernels: &DecoderKernels) -> Vec<Entry> {
    match kernels {
        DecoderKernels::Cluster(kernels) => {
            let (packed, exchange) = cluster_plan(kernels.layout());
            packed.into_iter().chain(exchange).collect()
        }
        DecoderKernels::Batch(kernels) => {
            packed_plan(kernels.layout().stream_len(), kernels.layout().constants_len()).into()
        }
        DecoderKernels::Grid(kernels) => {
            let (plan, sums) = grid_plan::<E>(kernels.layout());
            plan.into_iter().chain(sums).collect()
        }
    }
}

/// The weights, packed in the order of their use, and what follows from them.
fn packed_plan(stream_len: usize, constants_len: usize) -> [Entry; 2] {
    [
        Entry::new("decoder.stream", &[stream_len], Kind::Weight),
        Entry::new("decoder.constants", &[constants_len], Kind::Wide),
    ]
}

/// Of a cluster or a train of them: the weights, packed, and what the clusters tell each other, in 32-bit words.
fn cluster_plan(layout: ClusterLayout) -> ([Entry; 2], Option<Entry>) {
    let exchange =
        layout.exchange_words().map(|words| Entry::new("decoder.exchange", &[words, 4], Kind::Ids));
    (packed_plan(layout.stream_len(), layout.constants_len()), exchange)
}

/// What the blocks tell each other, what stays between launches, and where the weights are, all 32-bit words; and what is made of the weights
/// in advance, if anything is.
fn grid_plan<E: Element>(layout: Spread) -> ([Entry; 3], Option<Entry>) {
    let table = [layout.shape().layers, GridDecoder::<E>::TABLE_LEN];
    let plan = [
        Entry::new("decoder.exchange", &[layout.exchange_words(), 4], Kind::Ids),
        Entry::new("decoder.state", &[GridDecoder::<E>::STATE_LEN], Kind::Ids),
        Entry::new("decoder.table", &table, Kind::Ids),
    ];
    (plan, layout.sums().map(|rows| Entry::new("decoder.sums", &[rows, 2], Kind::Wide)))
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
        let (device, path, clocked) = (self.device(), self.taps.path(), self.taps.clocked());
        if capacity.batch > 1 {
            return match BatchLayout::new(shape, size_of::<E>()).filter(|_| path == Path::Fastest) {
                Some(layout) => {
                    Ok(BatchKernels::load(device, layout, capacity.batch, clocked)?
                        .map(DecoderKernels::Batch))
                }
                None => Ok(None),
            };
        }
        let wants_shards =
            path == Path::Shards || path != Path::Grid && ShardLayout::gains(shape, size_of::<E>());
        let shards = if wants_shards { Spread::shards(device, shape, size_of::<E>())? } else { None };
        if path == Path::Fastest {
            // Where shards gain on a single cluster, a train of them still gains on shards.
            let gaining = |layout: &ClusterLayout| shards.is_none() || layout.is_train();
            for layout in ClusterLayout::all(shape, size_of::<E>()).filter(gaining) {
                if let Some(kernels) = ClusterKernels::load(device, layout, clocked)? {
                    return Ok(Some(DecoderKernels::Cluster(kernels)));
                }
            }
        }
        if let Some(layout) = shards
            && let Some(kernels) = GridKernels::load(device, Spread::Shards(layout), clocked)?
        {
            return Ok(Some(DecoderKernels::Grid(kernels)));
        }
        let info = device.info();
        let (blocks, shared_bytes) = (info.multiprocessors as usize, info.shared_bytes_max);
        let layout = GridLayout::new(shape, size_of::<E>(), blocks, shared_bytes);
        match layout.filter(|layout| path == Path::Grid || layout.gains()) {
            Some(layout) => {
                Ok(GridKernels::load(device, Spread::Grid(layout), clocked)?.map(DecoderKernels::Grid))
            }
            None => Ok(None),
        }
    }
}

impl<E: Element> Cuda<E>
where
    Self: Backend<Weight = kernels::Buffer<E>>,
{
    /// Makes the decoder; for clusters, packs the weights.
    pub(super) fn make_decoder(
        &self,
        config: &Config,
        weights: &Weights<Self>,
        capacity: Capacity,
    ) -> Result<Option<kernels::Decoder<E>>> {
        Ok(match self.decoder_kernels(config, capacity)? {
            None => None,
            Some(DecoderKernels::Cluster(kernels)) => {
                let ([stream, constants], exchange) = cluster_plan(kernels.layout());
                let (stream, constants) = (self.zeroed(&stream)?, self.zeroed(&constants)?);
                let exchange = exchange.map(|exchange| self.zeroed(&exchange)).transpose()?;
                let layers = weights.blocks.iter().map(layer_weights);
                let (norm, token) = (parameters(&weights.final_norm), &weights.token);
                let decoder = ClusterDecoder::new(kernels, stream, constants, exchange, layers, norm, token)?;
                Some(kernels::Decoder::Cluster(decoder))
            }
            Some(DecoderKernels::Batch(kernels)) => {
                let [stream, constants] =
                    packed_plan(kernels.layout().stream_len(), kernels.layout().constants_len());
                let (stream, constants) = (self.zeroed(&stream)?, self.zeroed(&constants)?);
                let layers = weights.blocks.iter().map(layer_weights);
                let norm = parameters(&weights.final_norm);
                let embeddings = [&weights.token, &weights.position];
                let decoder = BatchDecoder::new(kernels, stream, constants, layers, norm, embeddings)?;
                Some(kernels::Decoder::Batch(decoder))
            }
            Some(DecoderKernels::Grid(kernels)) => {
                let ([exchange, state, table], sums) = grid_plan::<E>(kernels.layout());
                let (exchange, state, table) =
                    (self.zeroed(&exchange)?, self.zeroed(&state)?, self.zeroed(&table)?);
                let sums = sums.map(|sums| self.zeroed(&sums)).transpose()?;
                Some(kernels::Decoder::Grid(GridDecoder::new(kernels, exchange, state, table, sums)))
            }
        })
    }
}

/// A block's parameters.
fn layer_weights<E, B>((attention, mlp): &(AttentionSublayer<B>, MlpSublayer<B>)) -> LayerWeights<'_, E>
where
    E: Element,
    B: Backend<Weight = kernels::Buffer<E>>,
{
    let projections = &attention.attention;
    LayerWeights {
        norm_1: parameters(&attention.norm),
        qkvo: [&projections.q, &projections.k, &projections.v, &projections.out],
        out_bias: &projections.out_bias,
        norm_2: parameters(&mlp.norm),
        up: [&mlp.mlp.up, &mlp.mlp.up_bias],
        down: [&mlp.mlp.down, &mlp.mlp.down_bias],
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
        final_norm: parameters(&weights.final_norm),
        logits,
        tokens,
        cursor,
        outbox,
        eps: weights.final_norm.eps as f32,
    };
    let layers = weights.blocks.iter().zip(caches).map(|(block, LayerCache { keys, values })| LayerState {
        weights: layer_weights(block),
        cache: [keys, values],
    });
    Ok(decoder.run(generation, layers, steps)?)
}
