// Which kernels this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace flashlet {

// Best first; the portable ones are always there.
std::vector<const KernelTable*> available_kernels();

// The kernels of that name, or the best ones for ""; throws std::invalid_argument if they cannot run here.
const KernelTable& kernels_named(const std::string& name);

// True: the processor itself reads ahead to the end of a page, faster than it takes requests line by line.
bool reads_pages_ahead();

}  // namespace flashlet
