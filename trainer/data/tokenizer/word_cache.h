// What a model answered for the pieces it saw lately. One a thread and tokenizer; never shared.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace cairn::data {

// Pieces of up to 16 bytes are held whole in a slot, up to 3 ids with them, the others' ids in an arena; longer pieces
// are not held. Emptied when it is nearly full, so its memory is bounded.
class WordCache {
 public:
  static constexpr size_t kMaxBytes = 16;

  struct Key {
    uint64_t low = 0, high = 0;
    uint32_t length = 0;
    uint32_t hash = 0;
  };

  static Key key(std::string_view word) {
    Key k;
    k.length = static_cast<uint32_t>(word.size());
    const char* p = word.data();
    // Two overlapping loads hold all the bytes: with the length they name the word.
    if (word.size() >= 8) {
      std::memcpy(&k.low, p, 8);
      std::memcpy(&k.high, p + word.size() - 8, 8);
    } else if (word.size() >= 4) {
      uint32_t a, b;
      std::memcpy(&a, p, 4);
      std::memcpy(&b, p + word.size() - 4, 4);
      k.low = a | static_cast<uint64_t>(b) << 32;
    } else {
      for (size_t i = 0; i < word.size(); ++i)
        k.low |= static_cast<uint64_t>(static_cast<unsigned char>(p[i])) << (8 * i);
    }
    const unsigned __int128 product = static_cast<unsigned __int128>(k.low ^ 0x9E3779B97F4A7C15ull ^ k.length) *
                                      ((k.high + 0xD1B54A32D192ED03ull) | 1);
    const uint64_t mixed = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    k.hash = static_cast<uint32_t>(mixed ^ mixed >> 32);
    return k;
  }

  // Appends the ids of a word that is held; false where it is not.
  bool get(const Key& k, std::vector<int32_t>& out) const {
    for (uint32_t i = k.hash & kMask;; i = (i + 1) & kMask) {
      const Slot& slot = slots_[i];
      if (slot.length == 0) return false;
      if (slot.low != k.low || slot.high != k.high || slot.length != k.length) continue;
      if (slot.count == 1) {
        out.push_back(slot.ids[0]);
      } else {
        const int32_t* ids = slot.count <= 3 ? slot.ids : arena_.data() + slot.ids[0];
        out.insert(out.end(), ids, ids + slot.count);
      }
      return true;
    }
  }

  void put(const Key& k, std::span<const int32_t> ids) {
    if (ids.size() > 255) return;
    if (used_ > kSlots / 4 * 3) {
      std::fill(slots_.begin(), slots_.end(), Slot{});
      arena_.clear();
      used_ = 0;
    }
    uint32_t i = k.hash & kMask;
    while (slots_[i].length != 0) i = (i + 1) & kMask;
    Slot& slot = slots_[i];
    slot.low = k.low;
    slot.high = k.high;
    slot.length = static_cast<uint8_t>(k.length);
    slot.count = static_cast<uint8_t>(ids.size());
    if (ids.size() <= 3) {
      std::copy(ids.begin(), ids.end(), slot.ids);
    } else {
      slot.ids[0] = static_cast<int32_t>(arena_.size());
      arena_.insert(arena_.end(), ids.begin(), ids.end());
    }
    ++used_;
  }

 private:
  static constexpr uint32_t kSlots = 1 << 15, kMask = kSlots - 1;
  struct Slot {
    uint64_t low = 0, high = 0;
    uint8_t length = 0, count = 0;
    int32_t ids[3] = {};
  };
  static_assert(sizeof(Slot) == 32);
  std::vector<Slot> slots_ = std::vector<Slot>(kSlots);
  std::vector<int32_t> arena_;
  size_t used_ = 0;
};

}  // namespace cairn::data
