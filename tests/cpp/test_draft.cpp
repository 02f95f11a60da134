// The draft model: what it proposes is the same whatever the threads, kernels, chunks and neighbours, and it
// changes nothing that the target computes.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "tiny_model.h"

using namespace flashlet;

namespace {

// Of the target; those that the draft has are the last ones.
struct Vocabulary {
    int size = 37, outputs = 25;
};

class TinyDraft {
  public:
    // `sure`: how far apart the logits are.
    TinyDraft(int layers, bool attention, float sure = 1.0f, Vocabulary tokens = {}) : vocabulary(tokens) {
        model.shape = tiny_shape(layers, 4, 2, 10);
        model.shape.vocab_size = vocabulary.outputs;
        DraftWeights& w = model.weights;
        const int hidden = model.shape.hidden_size;
        arrays_.decoder(model.shape, w);
        for (LayerWeights& layer : w.layers) {
            if (!attention) layer.qkv = {};
        }
        w.features = {3, 0, 4};
        for (size_t i = 0; i < w.features.size(); ++i) w.feature_norms.push_back(arrays_.vector(hidden));
        w.fuse = arrays_.matrix(hidden, 3 * hidden);
        w.state_norm = arrays_.vector(hidden);
        w.embed_norm = arrays_.vector(hidden);
        w.input = arrays_.matrix(hidden, 2 * hidden);
        out_norm_.assign(static_cast<size_t>(round_up(hidden, kLanes)), sure);
        w.out_norm = out_norm_.data();
        w.head = arrays_.matrix(vocabulary.outputs, hidden);
        ids_.resize(static_cast<size_t>(vocabulary.outputs));
        std::iota(ids_.begin(), ids_.end(), vocabulary.size - vocabulary.outputs);
        w.vocab_ids = ids_.data();
        w.num_outputs = vocabulary.outputs;
    }

    // Looks only at panels whose scores are so near to the best, whatever those are.
    void add_shortlist(float gap) {
        DraftWeights& w = model.weights;
        w.shortlist = arrays_.matrix(w.head.panels, model.shape.hidden_size, true);
        w.shortlist_gap = gap;
    }

    DraftModel model;
    Vocabulary vocabulary;

  private:
    RandomArrays arrays_;
    std::vector<float> out_norm_;
    std::vector<int32_t> ids_;
};

struct Sequence {
    std::vector<int32_t> tokens, blocks;
    int num_tokens;  // to propose
    int computed = 0;
    bool remembers = false;
    std::vector<int32_t> proposed, all_proposed;
};

Sequence random_sequence(uint64_t seed, int length, int first_block, int num_tokens) {
    Random random(seed);
    Sequence sequence;
    for (int i = 0; i < length; ++i) {  // the same twice, so that there is something to remember
        const int token = random.integer(0, Vocabulary{}.size - 1);
        sequence.tokens.push_back(i < length / 2 ? token
                                                 : sequence.tokens[static_cast<size_t>(i - length / 2)]);
    }
    for (int i = 0; i < 3; ++i) sequence.blocks.push_back(first_block + i);
    sequence.num_tokens = num_tokens;
    return sequence;
}

constexpr int kBlocks = 16;

// One step: up to `chunk` known tokens of each sequence; at its end its proposals, which are verified.
void step(Model& model, std::vector<Sequence*> sequences, int chunk, const TinyDraft* draft) {
    StepPlan plan;
    std::vector<History> histories(sequences.size());
    std::vector<SampleParams> params(64);
    size_t used = 0;
    for (const Sequence* sequence : sequences) {
        Slice slice;
        slice.first_row = plan.rows();
        slice.start = sequence->computed;
        const int left = static_cast<int>(sequence->tokens.size()) - sequence->computed;
        const int known = std::min(chunk, left);
        slice.sampled = known == left;
        slice.proposed = slice.sampled ? static_cast<int>(sequence->proposed.size()) : 0;
        slice.rows = known + slice.proposed;
        slice.table = static_cast<int>(plan.block_tables.size());
        const auto first = sequence->tokens.begin() + sequence->computed;
        plan.tokens.insert(plan.tokens.end(), first, first + known);
        plan.block_tables.insert(plan.block_tables.end(), sequence->blocks.begin(), sequence->blocks.end());
        if (draft != nullptr) {
            slice.draft = {slice.sampled ? sequence->num_tokens : 0, 0, slice.sampled ? -1 : first[known]};
            History& history = histories[plan.slices.size()];
            for (const int32_t token : sequence->tokens) history.append(token);
            if (sequence->remembers) slice.draft.history = &history;
            plan.block_tables.push_back(kBlocks + static_cast<int>(plan.slices.size()));
        }
        slice.first_sample = static_cast<int>(plan.logit_rows.size());
        if (slice.sampled)
            plan.tokens.insert(plan.tokens.end(), sequence->proposed.begin(), sequence->proposed.end());
        for (int i = 0; slice.sampled && i <= slice.proposed; ++i) {
            SampleParams& item = params[used++];
            item.temperature = 0.7f;
            item.seed = 9;
            item.position = slice.start + known + i;
            plan.logit_rows.push_back({slice.first_row + known - 1 + i, static_cast<int>(plan.slices.size()),
                                       true, -1, -1, Logprobs{}, &item});
        }
        plan.slices.push_back(slice);
    }
    model.step(plan, nullptr);
    for (size_t i = 0; i < sequences.size(); ++i) {
        Sequence& sequence = *sequences[i];
        const Slice& slice = plan.slices[i];
        sequence.computed += slice.known();
        sequence.proposed.assign(slice.drafted.begin(), slice.drafted.begin() + slice.num_drafted);
        if (!slice.sampled) continue;
        const int accepted = plan.accepted(slice);
        sequence.computed += accepted;
        for (int k = 0; k <= accepted; ++k) sequence.tokens.push_back(plan.sample(slice, k).target);
        if (draft == nullptr) {
            CHECK(slice.num_drafted == 0);
            continue;
        }
        CHECK(slice.num_drafted == sequence.num_tokens);
        const Vocabulary tokens = draft->vocabulary;
        const int lowest = sequence.remembers ? 0 : tokens.size - tokens.outputs;
        for (const int32_t token : sequence.proposed) CHECK(token >= lowest && token < tokens.size);
        sequence.all_proposed.insert(sequence.all_proposed.end(), sequence.proposed.begin(),
                                     sequence.proposed.end());
    }
}

Sequence decoded(const KernelTable& kernels, const TinyDraft* draft, KvFormat format, int threads, int chunk,
                 int neighbours, bool remembers = false) {
    ModelShape shape = tiny_shape(3, 6, 2, 10);
    if (draft != nullptr) shape.vocab_size = draft->vocabulary.size;
    const TinyWeights weights(shape);
    Model model(kernels, shape, weights.model, {threads, kBlocks, 96, 4, format},
                draft != nullptr ? &draft->model : nullptr);
    Sequence sequence = random_sequence(5, 50, 0, 5);
    sequence.remembers = remembers;
    std::vector<Sequence> others;
    for (int i = 0; i < neighbours; ++i)
        others.push_back(random_sequence(20 + static_cast<uint64_t>(i), 9, 3 + 3 * i, 3 * i % 9));
    std::vector<Sequence*> all{&sequence};
    for (Sequence& other : others) all.insert(all.begin(), &other);
    while (sequence.tokens.size() < 62) step(model, all, chunk, draft);
    sequence.tokens.resize(62);
    sequence.all_proposed.resize(30);
    return sequence;
}

void check_same(const Sequence& found, const Sequence& expected, const char* what) {
    CHECK(found.tokens == expected.tokens, "(%s)", what);
    CHECK(found.all_proposed == expected.all_proposed, "(%s)", what);
}

}  // namespace

TEST(draft_is_invariant_and_changes_nothing) {
    const KernelTable& best = *available_kernels()[0];
    for (const bool attention : {true, false}) {
        for (const int layers : {1, 2}) {
            const TinyDraft draft(layers, attention);
            for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
                if (!attention && format == KvFormat::kFp16) continue;  // nothing of the draft is in the pool
                const Sequence expected = decoded(best, &draft, format, 1, 96, 0);
                CHECK(decoded(best, nullptr, format, 2, 30, 0).tokens == expected.tokens);
                check_same(decoded(best, &draft, format, 2, 1, 0), expected, "chunks of 1");
                check_same(decoded(best, &draft, format, 3, 20, 0), expected, "chunks of 20, 3 threads");
                check_same(decoded(best, &draft, format, 2, 40, 3), expected, "neighbours");
                check_same(decoded(best, &draft, format, 8, 15, 1), expected, "8 threads");
                for (const KernelTable* kernels : available_kernels())
                    check_same(decoded(*kernels, &draft, format, 2, 17, 2), expected, kernels->name);
            }
        }
    }
}

TEST(draft_remembers_the_text) {
    const KernelTable& best = *available_kernels()[0];
    for (const bool attention : {true, false}) {
        const TinyDraft draft(1, attention, 0.1f);  // else what the text says would change nothing
        const Sequence forgetful = decoded(best, &draft, KvFormat::kInt8, 1, 96, 0);
        const Sequence expected = decoded(best, &draft, KvFormat::kInt8, 1, 96, 0, true);
        CHECK(expected.tokens == forgetful.tokens);
        CHECK(expected.all_proposed != forgetful.all_proposed);
        const std::vector<int32_t>& proposed = expected.all_proposed;
        CHECK(*std::min_element(proposed.begin(), proposed.end()) < Vocabulary{}.size - Vocabulary{}.outputs);
        check_same(decoded(best, &draft, KvFormat::kInt8, 3, 20, 2, true), expected, "threads, neighbours");
        for (const KernelTable* kernels : available_kernels())
            check_same(decoded(*kernels, &draft, KvFormat::kInt8, 2, 17, 1, true), expected, kernels->name);
    }
}

TEST(draft_looks_at_panels_of_its_shortlist) {
    const KernelTable& best = *available_kernels()[0];
    const auto proposed = [&](int outputs, float gap, bool remembers) {
        TinyDraft draft(1, false, remembers ? 0.1f : 1.0f, {outputs + 44, outputs});
        if (gap > 0.0f) draft.add_shortlist(gap);
        const Sequence expected = decoded(best, &draft, KvFormat::kInt8, 1, 96, 0, remembers);
        check_same(decoded(best, &draft, KvFormat::kInt8, 3, 20, 3, remembers), expected, "neighbours");
        for (const KernelTable* kernels : available_kernels())
            check_same(decoded(*kernels, &draft, KvFormat::kInt8, 2, 17, 1, remembers), expected,
                       kernels->name);
        return expected.all_proposed;
    };
    for (const int outputs : {256, 512, 768, 1024}) {  // 1 to 4 panels of scores
        for (const bool remembers : {false, true}) {
            const std::vector<int32_t> all = proposed(outputs, 0.0f, remembers),
                                       few = proposed(outputs, 1e-3f, remembers);
            CHECK(proposed(outputs, 1e9f, remembers) == all);
            CHECK(few != all);
            CHECK(few.size() == all.size());
        }
    }
}

TEST(draft_stops_where_the_context_ends) {
    const ModelShape shape = tiny_shape(3, 6, 2, 10);
    const TinyWeights weights(shape);
    const TinyDraft draft(1, true);
    Model model(*available_kernels()[0], shape, weights.model, {2, kBlocks, 96, 4, KvFormat::kInt8},
                &draft.model);
    for (int length = 90; length <= kContext; ++length) {
        Sequence sequence = random_sequence(7, length, 0, std::max(0, std::min(8, kContext - 1 - length)));
        step(model, {&sequence}, 96, &draft);
    }
}

TEST(draft_takes_room_in_blocks) {
    const ModelShape shape = tiny_shape(3, 6, 2, 10);
    const TinyDraft attentive(2, true), plain(2, false);
    const size_t alone = Model::block_bytes(shape, KvFormat::kInt8);
    CHECK(Model::block_bytes(shape, KvFormat::kInt8, &plain.model) == alone);
    CHECK(Model::block_bytes(shape, KvFormat::kInt8, &attentive.model) ==
          alone + Decoder::block_bytes(attentive.model.shape, KvFormat::kInt8));
}
