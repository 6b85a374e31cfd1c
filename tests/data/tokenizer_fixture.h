// What the tokenizers' tests share: the test data, odd strings, random text.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {

// PATH inside the test data; empty where there is none (the caller skips).
inline std::string test_data(const std::string& path) {
  const char* folder = std::getenv("CAIRN_TEST_DATA");
  return folder && *folder ? std::string(folder) + "/" + path : std::string();
}
#define CAIRN_NEEDS_DATA() \
  if (test_data("").empty()) GTEST_SKIP() << "CAIRN_TEST_DATA is not set"

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error(path + ": cannot be opened");
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// Valid UTF-8 of what scanners and merges stumble over: contractions, spaces of all kinds, digits of several scripts,
// marks, CJK, emoji, characters newer than the libraries' tables.
inline std::string random_text(std::mt19937& random, int length) {
  static const char* const kBits[] = {" ",
                                      "  ",
                                      "\n",
                                      "\r\n",
                                      "\t",
                                      "'",
                                      "'s",
                                      "'LL",
                                      "'ve",
                                      "'re",
                                      "'t",
                                      "a",
                                      "B",
                                      "the",
                                      "word",
                                      "Ünï",
                                      "7",
                                      "42",
                                      "٣",
                                      "½",
                                      "Ⅷ",
                                      "!",
                                      "...",
                                      "(",
                                      "_",
                                      "\"",
                                      "$",
                                      "+",
                                      "漢",
                                      "かな",
                                      "テ",
                                      "한글",
                                      "👨‍👩‍👧",
                                      "é",
                                      "é",
                                      "̖",
                                      "\u00a0",
                                      "\u3000",
                                      "\u2028",
                                      "\u0085",
                                      "\u200d",
                                      "ſ",
                                      "'ſ",
                                      "▁",
                                      "�",
                                      "<|endoftext|>",
                                      "।",
                                      "س",
                                      "©"};
  std::string out;
  for (int i = 0; i < length; ++i) {
    if (random() % 6 == 0) {
      uint32_t c = random() % (random() % 2 ? 0x3000 : 0x32000);
      if (c >= 0xD800 && c < 0xE000) c = 'x';
      append_utf8(out, c);
    } else {
      out += kBits[random() % std::size(kBits)];
    }
  }
  return out;
}

}  // namespace cairn::data
