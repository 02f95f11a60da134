// The names of the attributes that a step is read from.
#pragma once

#include "arrays.h"

namespace flashlet {

// An attribute's name, made once: Python finds it by identity.
class Name {
  public:
    explicit Name(const char* text) : text_(text), object_(nb::steal(PyUnicode_InternFromString(text))) {}
    nb::object of(const nb::handle& owner) const { return nb::getattr(owner, object_); }
    template <class T>
    void read(const nb::handle& owner, T& field) const {
        field = number<T>(of(owner), text_);
    }

  private:
    const char* text_;
    nb::object object_;
};

// Of the classes in model/step.py and model/sampling.py.
struct Names {
    Name allowed{"allowed"}, block_table{"block_table"}, copied_block{"copied_block"}, draft{"draft"},
        features{"features"}, history{"history"}, least_confidence{"least_confidence"},
        logprob_targets{"logprob_targets"}, next_token{"next_token"}, num_tokens{"num_tokens"},
        num_top_logprobs{"num_top_logprobs"}, output{"output"}, params{"params"}, position{"position"},
        prompt{"prompt"}, proposed{"proposed"}, samples{"samples"}, start{"start"}, suppressed{"suppressed"},
        token_ids{"token_ids"}, temperature{"temperature"}, top_k{"top_k"}, top_p{"top_p"}, min_p{"min_p"},
        presence_penalty{"presence_penalty"}, frequency_penalty{"frequency_penalty"},
        repetition_penalty{"repetition_penalty"}, seed{"seed"}, logprobs{"logprobs"},
        logit_bias{"logit_bias"}, needs_history{"needs_history"};
};

}  // namespace flashlet
