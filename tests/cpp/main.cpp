// Runs every test whose name contains one of the arguments; all, if there are none.
#include <algorithm>

#include "check.h"
#include "isa.h"

int main(int argc, char** argv) {
    std::printf("instruction sets:");
    for (const flashlet::KernelTable* kernels : flashlet::available_kernels())
        std::printf(" %s", kernels->name);
    std::printf("\n");
    int failed = 0, run = 0;
    for (const Test& test : Test::all) {
        const auto names_it = [&](const char* part) { return std::strstr(test.name, part) != nullptr; };
        if (argc > 1 && std::none_of(argv + 1, argv + argc, names_it)) continue;
        ++run;
        try {
            test.body();
            std::printf("ok      %s\n", test.name);
        } catch (const std::exception& error) {
            ++failed;
            std::printf("FAILED  %s: %s\n", test.name, error.what());
        }
        std::fflush(stdout);
    }
    std::printf("%d tests, %d failed\n", run, failed);
    return failed != 0 || run == 0;
}
