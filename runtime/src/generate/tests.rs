use std::path::Path;

use super::*;
use crate::config::Config;
use crate::host::Host;
use crate::weights::RandomWeights;

const CONTEXT: usize = 9;
const HOT: Sampling = Sampling { temperature: 1.3, top_k: 0, top_p: 1.0, seed: 5 };

fn config() -> Config {
    let text = format!(
        r#"{{"vocab_size": 31, "max_position_embeddings": {CONTEXT}, "hidden_size": 12, "num_attention_heads": 3,
            "intermediate_size": 20, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
            "tie_word_embeddings": true, "model_type": "touchstone_gpt", "dtype": "float32"}}"#
    );
    Config::parse(&text, Path::new("test")).unwrap()
}

fn with_model<T>(batch: usize, body: impl FnOnce(&mut Host<f32>, &mut Model<Host<f32>>) -> T) -> T {
    let mut host = Host::new();
    let capacity = capacity(CONTEXT, batch);
    let mut model = Model::new(&mut host, &config(), &RandomWeights::new(3), capacity).unwrap();
    body(&mut host, &mut model)
}

/// The tokens of one request alone.
fn tokens(
    generator: &mut Generator<'_, Host<f32>>,
    prompt: &[u32],
    n: usize,
    sampling: Sampling,
) -> Vec<u32> {
    let mut tokens = Vec::new();
    let request = Request { prompt, max_new_tokens: n, sampling };
    let timings = generator
        .generate(&[request], |_, token| {
            tokens.push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(1 + timings.decoded + timings.slid, n, "every token is counted once");
    tokens
}

/// Generation as it is defined: for every token, a pass over the last P tokens from position 0, and nothing else.
fn by_definition(prompt: &[u32], n: usize, sampling: Sampling) -> Vec<u32> {
    with_model(1, |host, model| {
        let mut all = prompt.to_vec();
        model.set_sampling(host, &[sampling]).unwrap();
        for step in 0..n {
            let window = all[all.len().saturating_sub(CONTEXT)..].to_vec();
            model.rewind(host, &[step as u32]).unwrap();
            model.forward(host, &window).unwrap();
            model.sample(host).unwrap();
            model.take(host, &mut all).unwrap();
        }
        all.split_off(prompt.len())
    })
}

/// Without this, the cache, the slide at the context's end, the crop of a long prompt or the look-ahead could change the text.
#[test]
fn tokens_are_those_of_the_definition_at_every_lookahead() {
    let long: Vec<u32> = (0..40).map(|i| (i * 7 + 1) % 31).collect();
    for prompt in
        [&long[..1], &long[..4], &long[..CONTEXT - 1], &long[..CONTEXT], &long[..CONTEXT + 1], &long]
    {
        for sampling in [HOT, Sampling::GREEDY] {
            let expected = by_definition(prompt, 45, sampling);
            for lookahead in [1, 2, 3, LOOKAHEAD, OUTBOX_ROWS] {
                let found = with_model(1, |host, model| {
                    tokens(&mut Generator::new(host, model, 1, lookahead), prompt, 45, sampling)
                });
                assert_eq!(found, expected, "prompt of {}, look-ahead {lookahead}", prompt.len());
            }
        }
    }
}

/// Without this, a stopped generation could leave tokens behind that the next one shows as its own.
#[test]
fn a_stop_leaves_nothing_behind() {
    with_model(1, |host, model| {
        let mut generator = Generator::new(host, model, 1, 4);
        let expected = tokens(&mut generator, &[1, 2], 20, HOT);
        for stop in 1..20 {
            let mut seen = Vec::new();
            let request = Request { prompt: &[1, 2], max_new_tokens: 20, sampling: HOT };
            let timings = generator
                .generate(&[request], |_, token| {
                    seen.push(token);
                    if seen.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .unwrap();
            assert_eq!(seen, expected[..stop]);
            assert_eq!(1 + timings.decoded + timings.slid, stop);
            assert_eq!(tokens(&mut generator, &[1, 2], 20, HOT), expected, "after a stop at {stop}");
        }
    });
}

/// Prompt, tokens and rule of requests that differ in everything: some end within the context, some at its end, some far behind; one begins
/// past it.
fn ragged(long: &[u32]) -> Vec<Request<'_>> {
    let rule = |temperature, top_k, top_p, seed| Sampling { temperature, top_k, top_p, seed };
    let request =
        |length, max_new_tokens, sampling| Request { prompt: &long[..length], max_new_tokens, sampling };
    vec![
        request(3, 20, rule(1.3, 0, 1.0, 5)),
        request(1, 4, Sampling::GREEDY),
        request(CONTEXT - 2, 3, rule(0.9, 7, 1.0, 5)),
        request(3, 1, rule(1.3, 0, 1.0, 6)),
        request(40, 31, rule(2.0, 0, 0.7, 1 << 40)),
        request(CONTEXT, 17, rule(1.3, 0, 1.0, 5)),
        request(2, CONTEXT - 1, rule(1.1, 20, 0.9, 9)),
    ]
}

/// What came for each of `requests`, sequence number n stopped after `stops[n]` tokens, and how many steps it took.
fn together(
    generator: &mut Generator<'_, Host<f32>>,
    requests: &[Request<'_>],
    stops: &[usize],
) -> (Vec<Vec<u32>>, usize) {
    let mut texts = vec![Vec::new(); requests.len()];
    let timings = generator
        .generate(requests, |sequence, token| {
            texts[sequence].push(token);
            let stopped = texts[sequence].len() == stops[sequence];
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    (texts, 1 + timings.decoded + timings.slid)
}

/// Without this, sequences of a batch could mix: by padding that is seen, another's cursor, rule or random numbers, or a place in the batch.
#[test]
fn each_sequence_of_a_ragged_batch_gets_what_it_gets_alone() {
    let long: Vec<u32> = (0..40).map(|i| (i * 7 + 1) % 31).collect();
    let mut requests = ragged(&long);
    let mut expected: Vec<_> = requests
        .iter()
        .map(|request| by_definition(request.prompt, request.max_new_tokens, request.sampling))
        .collect();
    for lookahead in [1, 4, LOOKAHEAD] {
        // With two sequences of the batch left over.
        with_model(requests.len() + 2, |host, model| {
            let mut generator = Generator::new(host, model, requests.len() + 2, lookahead);
            for _ in 0..requests.len() {
                let (texts, _) = together(&mut generator, &requests, &[0; 7]);
                assert_eq!(texts, expected, "look-ahead {lookahead}");
                requests.rotate_left(1);
                expected.rotate_left(1);
            }
        });
    }
}

/// Without this, the cache could go unused while it has room, or a window be run for a sequence that the cache serves.
#[test]
fn a_batch_takes_as_many_steps_as_its_longest_sequence() {
    let long: Vec<u32> = (0..40).map(|i| (i * 7 + 1) % 31).collect();
    with_model(3, |host, model| {
        let mut generator = Generator::new(host, model, 3, 4);
        let request =
            |length, max_new_tokens| Request { prompt: &long[..length], max_new_tokens, sampling: HOT };
        // The first is served for 6 tokens and slides for 5; the second is served for 3, and slides with it for 2.
        let timings =
            generator.generate(&[request(3, 12), request(6, 6)], |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!((timings.decoded, timings.slid), (6, 5));
    });
}

/// Without this, a stop could end other sequences too, or leave something behind.
#[test]
fn a_sequence_can_be_stopped_and_the_others_go_on() {
    let long: Vec<u32> = (0..40).map(|i| (i * 7 + 1) % 31).collect();
    let requests = ragged(&long);
    with_model(requests.len(), |host, model| {
        let mut generator = Generator::new(host, model, requests.len(), 4);
        let (whole, _) = together(&mut generator, &requests, &[0; 7]);
        for stop in 1..20 {
            let stops = [stop, 0, 2, 0, stop + 3, 1, stop];
            let (texts, steps) = together(&mut generator, &requests, &stops);
            for (n, (text, whole)) in texts.iter().zip(&whole).enumerate() {
                let length = if stops[n] == 0 { whole.len() } else { stops[n].min(whole.len()) };
                assert_eq!(text[..], whole[..length], "sequence {n}, stops {stops:?}");
            }
            let longest = texts.iter().map(Vec::len).max().unwrap();
            assert!(steps <= longest + CONTEXT, "{steps} steps for {longest} tokens at most");
        }
        assert_eq!(together(&mut generator, &requests, &[0; 7]).0, whole);
    });
}

/// Without this, a wrong request would panic inside the model, or fill the logits with NaN.
#[test]
fn a_wrong_request_is_refused() {
    with_model(1, |host, model| {
        let mut generator = Generator::new(host, model, 1, 1);
        let mut problem = |prompt: &[u32], max_new_tokens, temperature| {
            let request = Request { prompt, max_new_tokens, sampling: Sampling { temperature, ..HOT } };
            generator.generate(&[request], |_, _| panic!("nothing may be generated")).unwrap_err().to_string()
        };
        assert_eq!(problem(&[], 1, 1.0), "the prompt: is empty, expected at least one token");
        assert_eq!(problem(&[1], 0, 1.0), "max-new-tokens: is 0, expected at least 1");
        let foreign = "the prompt: holds token 31, expected tokens below 31, the model's vocab_size";
        assert_eq!(problem(&[1, 31], 1, 1.0), foreign);
        assert!(problem(&[1], 1, -1.0).starts_with("temperature: is -1"));
    });
}
