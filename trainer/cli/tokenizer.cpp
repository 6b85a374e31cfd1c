#include "trainer/data/tokenizer/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <iostream>

#include "checkpoints/file.h"
#include "trainer/cli/cli.h"
#include "trainer/data/prepare.h"

namespace cairn::cli {
namespace {

struct Options {
  std::string file, input, out;
  std::vector<std::string> text;
  int64_t vocab_size = 4096;
  int threads = 0;
  bool json = false, special = false;
};

int train(const Options& o) {
  std::vector<std::string> documents;
  for (const std::string& text : o.text) {
    data::SourceOptions source = data::source_of(text);
    source.name = data::default_name(source);
    data::read_documents(source, 0, [&](std::string_view document) {
      documents.emplace_back(document);
      return true;
    });
  }
  const auto tokenizer =
      data::train_bpe({documents.begin(), documents.end()}, {.vocab_size = o.vocab_size, .threads = o.threads});
  tokenizer->save(o.out);
  if (o.json) {
    fmt::print(
        "{}\n",
        nlohmann::ordered_json{{"vocab_size", tokenizer->vocab_size()}, {"documents", documents.size()}, {"out", o.out}}
            .dump());
  } else {
    fmt::print("{} tokens from {} documents: {}/tokenizer.json\n", tokenizer->vocab_size(), documents.size(), o.out);
  }
  return 0;
}

// Reads --input, or the standard input; calls body(stream, its name).
template <class Body>
int with_input(const Options& o, Body body) {
  if (o.input.empty()) return body(std::cin, std::string("standard input")), 0;
  std::ifstream file(o.input, std::ios::binary);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be read", o.input));
  return body(file, o.input), 0;
}

int encode(const Options& o) {
  const auto tokenizer = data::Tokenizer::from_file(o.file);
  return with_input(o, [&](std::istream& in, const std::string& origin) {
    if (o.json) return data::encode_json_lines(*tokenizer, in, std::cout, o.special, origin);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    fmt::print("{}\n", fmt::join(tokenizer->encode(text, o.special), " "));
  });
}

int decode(const Options& o) {
  const auto tokenizer = data::Tokenizer::from_file(o.file);
  return with_input(o, [&](std::istream& in, const std::string& origin) {
    if (o.json) return data::decode_json_lines(*tokenizer, in, std::cout, !o.special, origin);
    std::vector<int32_t> ids;
    std::string word;
    while (in >> word) {
      size_t used = 0;
      int64_t id = -1;
      try {
        id = std::stoll(word, &used);
      } catch (const std::exception&) {
      }
      if (used != word.size() || id < 0 || id >= tokenizer->vocab_size())
        throw std::runtime_error(fmt::format("{}: '{}' is no id below {}", origin, word, tokenizer->vocab_size()));
      ids.push_back(static_cast<int32_t>(id));
    }
    fmt::print("{}", tokenizer->decode(ids, !o.special));
  });
}

}  // namespace

Action tokenizer_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  auto chosen = std::make_shared<int (*)(const Options&)>(nullptr);
  command.require_subcommand(1);
  CLI::App* t = command.add_subcommand("train", "byte-level BPE from texts");
  t->add_option("text", o->text, "files, folders, globs or known names (foldoc)")->required();
  t->add_option("--vocab-size", o->vocab_size, "default 4096");
  t->add_option("--out", o->out, "folder for tokenizer.json")->required();
  add_threads(*t, o->threads, "default: all; changes nothing in the result");
  t->add_flag("--json", o->json, "{\"vocab_size\", \"documents\", \"out\"}");
  t->callback([chosen] { *chosen = train; });
  for (const bool encoding : {true, false}) {
    CLI::App* c = command.add_subcommand(encoding ? "encode" : "decode", encoding ? "text to ids" : "ids to text");
    c->add_option("--tokenizer", o->file, "tokenizer.json, a folder that holds one, or a GGUF file")->required();
    c->add_option("--input", o->input, "default: standard input");
    c->add_flag("--special", o->special, encoding ? "add the special tokens of the tokenizer" : "show special tokens");
    c->add_flag("--json", o->json,
                encoding ? "one JSON string a line -> one array of ids a line"
                         : "one array of ids a line -> one JSON string a line");
    c->callback([chosen, encoding] { *chosen = encoding ? encode : decode; });
  }
  return [o, chosen] { return (*chosen)(*o); };
}

}  // namespace cairn::cli
