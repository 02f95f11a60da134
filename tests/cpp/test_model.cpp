// A tiny model: the logits of a sequence are the same bits whatever the threads, kernels, chunks and
// neighbours.
#include <algorithm>
#include <memory>

#include "check.h"
#include "data.h"
#include "tiny_model.h"

using namespace flashlet;

namespace {

// A sequence with its own blocks; every position's logits are kept.
struct Sequence {
    std::vector<int32_t> tokens, blocks;
    int computed = 0;
    std::vector<float> logits;
    std::vector<int32_t> sampled;
};

Sequence random_sequence(uint64_t seed, int length, int first_block) {
    Random random(seed);
    Sequence sequence;
    for (int i = 0; i < length; ++i) sequence.tokens.push_back(random.integer(0, 36));
    for (int i = 0; i < 3; ++i) sequence.blocks.push_back(first_block + (i + 2) % 3);
    return sequence;
}

// One step that brings up to `chunk` tokens of each sequence.
void step(Model& model, const std::vector<Sequence*>& sequences, int chunk) {
    SampleParams params;
    params.seed = 5;
    params.top_k = 20;
    StepPlan plan;
    for (Sequence* sequence : sequences) {
        const int rows = std::min(chunk, static_cast<int>(sequence->tokens.size()) - sequence->computed);
        if (rows == 0) continue;
        Slice slice;
        slice.first_row = plan.rows();
        slice.rows = rows;
        slice.start = sequence->computed;
        slice.table = static_cast<int>(plan.block_tables.size());
        plan.tokens.insert(plan.tokens.end(), sequence->tokens.begin() + sequence->computed,
                           sequence->tokens.begin() + sequence->computed + rows);
        plan.block_tables.insert(plan.block_tables.end(), sequence->blocks.begin(), sequence->blocks.end());
        for (int row = 0; row < rows; ++row) {
            plan.logit_rows.push_back({slice.first_row + row, static_cast<int>(plan.slices.size()), true, 0,
                                       3, Logprobs{}, &params});
        }
        plan.slices.push_back(slice);
    }
    std::vector<float> logits(plan.logit_rows.size() * 37);
    model.step(plan, logits.data());
    size_t at = 0;
    for (Sequence* sequence : sequences) {
        const int rows = std::min(chunk, static_cast<int>(sequence->tokens.size()) - sequence->computed);
        for (int row = 0; row < rows; ++row, ++at) {
            sequence->logits.insert(sequence->logits.end(),
                                    logits.begin() + static_cast<std::ptrdiff_t>(at * 37),
                                    logits.begin() + static_cast<std::ptrdiff_t>(at * 37 + 37));
            sequence->sampled.push_back(plan.logit_rows[at].target);
            CHECK(plan.logit_rows[at].logprobs.top.size() == 3);
        }
        sequence->computed += rows;
    }
}

Sequence computed(const KernelTable& kernels, const ModelShape& shape, KvFormat format, int threads,
                  int chunk, int neighbours) {
    const TinyWeights weights(shape);
    Model model(kernels, shape, weights.model, {threads, 16, 96, 4, format});
    static uint64_t seed = 100;
    for (int block = 0; block < 15; block += 3) {  // something else lies in every block, each time
        Sequence before = random_sequence(++seed, kContext, block);
        step(model, {&before}, kContext);
    }
    Sequence sequence = random_sequence(7, 70, 3);
    std::vector<Sequence> others;
    for (int i = 0; i < neighbours; ++i)
        others.push_back(random_sequence(20 + static_cast<uint64_t>(i), 13, 6 + 3 * i));
    std::vector<Sequence*> all{&sequence};
    for (Sequence& other : others) all.insert(all.begin(), &other);
    while (sequence.computed < 70) step(model, all, chunk);
    return sequence;
}

void check_same(const Sequence& found, const Sequence& expected, const char* what) {
    CHECK(same_bits(found.logits, expected.logits), "(%s)", what);
    CHECK(found.sampled == expected.sampled, "(%s)", what);
}

}  // namespace

TEST(model_is_invariant) {
    const ModelShape shape = tiny_shape(3, 6, 2, 10);
    for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
        const KernelTable& best = *available_kernels()[0];
        const Sequence expected = computed(best, shape, format, 1, 70, 0);
        CHECK(*std::max_element(expected.logits.begin(), expected.logits.end()) > 0.0f);
        for (const int chunk : {1, 2, 7, 33}) {
            check_same(computed(best, shape, format, 2, chunk, 0), expected, "chunks, 2 threads");
        }
        check_same(computed(best, shape, format, 3, 64, 0), expected, "3 threads");
        check_same(computed(best, shape, format, 8, 12, 0), expected, "8 threads");
        check_same(computed(best, shape, format, 2, 20, 2), expected, "neighbours");
        check_same(computed(best, shape, format, 3, 1, 3), expected, "decoding neighbours");
        for (const KernelTable* kernels : available_kernels()) {
            check_same(computed(*kernels, shape, format, 2, 9, 1), expected, kernels->name);
        }
    }
}

TEST(model_with_many_heads_per_kv_head) {
    const ModelShape shape = tiny_shape(2, 15, 1, 6);
    const Sequence expected = computed(*portable_kernels(), shape, KvFormat::kInt8, 1, 70, 0);
    for (const KernelTable* kernels : available_kernels()) {
        check_same(computed(*kernels, shape, KvFormat::kInt8, 2, 1, 0), expected, kernels->name);
        check_same(computed(*kernels, shape, KvFormat::kInt8, 2, 11, 1), expected, kernels->name);
    }
}

TEST(model_with_many_layers_and_few_rows) {
    const ModelShape shape = tiny_shape(40, 2, 2, 16);
    const TinyWeights weights(shape);
    Model model(*available_kernels()[0], shape, weights.model, {2, 6, 4, 1, KvFormat::kInt8});
    Sequence sequence = random_sequence(3, 8, 0);
    step(model, {&sequence}, 4);
    step(model, {&sequence}, 4);
    const std::vector<float> logits = sequence.logits;
    sequence = random_sequence(3, 8, 0);
    while (sequence.computed < 8) step(model, {&sequence}, 1);
    CHECK(same_bits(sequence.logits, logits));
}

TEST(model_reads_its_whole_context) {
    const ModelShape shape = tiny_shape(1, 2, 1, 16);
    const TinyWeights weights(shape);
    for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
        Model model(*available_kernels()[0], shape, weights.model, {2, 6, kContext, 1, format});
        Sequence sequence = random_sequence(3, kContext, 0), other = sequence;
        other.tokens[0] = (other.tokens[0] + 1) % 37;
        step(model, {&sequence}, kContext);
        step(model, {&other}, kContext);
        for (size_t at = 0; at < sequence.logits.size(); at += 37) {
            CHECK(!std::equal(other.logits.begin() + static_cast<std::ptrdiff_t>(at),
                              other.logits.begin() + static_cast<std::ptrdiff_t>(at + 37),
                              sequence.logits.begin() + static_cast<std::ptrdiff_t>(at)),
                  "(position %zu)", at / 37);
        }
    }
}

TEST(model_reports_its_work) {
    const ModelShape shape = tiny_shape(2, 4, 2, 16);
    const TinyWeights weights(shape);
    Model model(*available_kernels()[0], shape, weights.model, {2, 5, 8, 2, KvFormat::kFp16});
    CHECK(model.kv_bytes() == 5 * Model::block_bytes(shape, KvFormat::kFp16));
    Sequence sequence = random_sequence(3, 8, 0);
    step(model, {&sequence}, 8);
    double total = 0.0;
    for (const double seconds : model.take_profile()) total += seconds;
    CHECK(total > 0.0);
    for (const double seconds : model.take_profile()) CHECK(seconds == 0.0);
    CHECK(model.measure_read() > 0.0);
}
