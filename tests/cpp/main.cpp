// Runs every test whose name contains the first argument.
#include "check.h"
#include "isa.h"

int main(int argc, char** argv) {
    std::printf("instruction sets:");
    for (const flashlet::KernelTable* kernels : flashlet::available_kernels())
        std::printf(" %s", kernels->name);
    std::printf("\n");
    int failed = 0, run = 0;
    for (const Test& test : Test::all) {
        if (argc > 1 && std::string(test.name).find(argv[1]) == std::string::npos) continue;
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
