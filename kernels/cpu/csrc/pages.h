// Memory in huge pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashlet {

// Zeros that cost nothing until used and go back to the system at the end. Huge pages spare the processor
// most of its address translation: reading weights was a tenth faster with them.
class Pages {
  public:
    Pages() = default;
    // `reserved`: all of it will be used, so that too much fails here. Throws std::bad_alloc.
    Pages(size_t bytes, bool reserved);
    Pages(Pages&& other) noexcept;
    Pages& operator=(Pages&& other) noexcept;
    ~Pages();

    uint8_t* data() const { return data_; }
    size_t size() const { return bytes_; }

  private:
    void* mapping_ = nullptr;
    size_t mapped_ = 0;
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace flashlet
