// labels: quick
// Reading text: files, folders, globs, compression, JSON lines, FOLDOC, and what is wrong with them.
#include "trainer/data/documents.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/data/fixture.h"
#include "trainer/data/foldoc.h"
#include "trainer/data/prepare.h"

namespace cairn::data {
namespace {

std::vector<std::string> documents_of(const SourceOptions& source) {
  std::vector<std::string> out;
  read_documents(source, 0, [&](std::string_view text) {
    out.emplace_back(text);
    return true;
  });
  return out;
}
using Texts = std::vector<std::string>;

TEST(Documents, AFileIsOneUnlessASeparatorSplitsIt) {
  const Folder folder;
  const auto plain = folder.write("a.txt", "one\n\ntwo\n");
  EXPECT_EQ(documents_of(text_source(plain)), Texts{"one\n\ntwo\n"});
  auto split = text_source(plain);
  split.separator = "\n\n";
  EXPECT_EQ(documents_of(split), (Texts{"one", "two"}));
  const auto stories =
      folder.write("b.txt", "\nFirst story.\n<|endoftext|>\n\n<|endoftext|>\nSecond.\r\n<|endoftext|>\n");
  EXPECT_EQ(documents_of(text_source(stories)), (Texts{"First story.", "Second."}));
}

TEST(Documents, SeparatorsAreFoundAcrossTheReadersChunks) {
  const Folder folder;
  std::mt19937 random(1);
  for (const std::string separator : {"\n\n\n", "<|endoftext|>", "aab"}) {
    Texts expected;
    std::string text;
    for (int i = 0; i < 40; ++i) {
      std::string piece(1 + random() % 60000, 'x');
      for (auto& c : piece) c = "ab<|x"[random() % 5];
      while (piece.find(separator) != piece.npos) piece.erase(piece.find(separator), 1);
      piece = "x" + piece + "x";
      expected.push_back(piece);
      text += (i > 0 ? separator : "") + piece;
    }
    auto source = text_source(folder.write("long.txt", text));
    source.separator = separator;
    ASSERT_EQ(documents_of(source), expected) << separator;
  }
}

TEST(Documents, FoldersAndGlobsComeInTheOrderOfTheirPaths) {
  const Folder folder;
  folder.write("d/b.txt", "B");
  folder.write("d/a.txt.gz", gzip("A"));
  folder.write("d/sub/c.txt.zst", zstd("C"));
  folder.write("d/.hidden/x.txt", "X");
  folder.write("d/readme.md", "M");
  EXPECT_EQ(documents_of(text_source(folder / "d")), (Texts{"A", "B", "C"}));
  EXPECT_EQ(documents_of(text_source(folder / "d/")), (Texts{"A", "B", "C"}));
  EXPECT_EQ(documents_of(text_source(folder / "d/*.md")), Texts{"M"});
  EXPECT_EQ(documents_of(text_source(folder / "d/?.txt*")), (Texts{"A", "B"}));
  EXPECT_EQ(documents_of(text_source(folder / "**/*.txt*")), (Texts{"X", "A", "B", "C"}));
  expect_error([&] { documents_of(text_source(folder / "d/*.py")); }, {"d/*.py", "no file matches"});
  expect_error([&] { documents_of(text_source(folder / "none.txt")); }, {"none.txt", "No such file"});
  std::filesystem::create_directories(folder / "e");
  expect_error([&] { documents_of(text_source(folder / "e")); }, {"/e", ".txt, .txt.gz, .txt.zst"});
}

TEST(Documents, GlobsMatchInsideAndAcrossFolders) {
  EXPECT_TRUE(matches_glob("a/b.txt", "a/*.txt"));
  EXPECT_FALSE(matches_glob("a/c/b.txt", "a/*.txt"));
  EXPECT_TRUE(matches_glob("a/c/d/b.txt", "a/**/*.txt"));
  EXPECT_TRUE(matches_glob("a/b.txt", "a/**/*.txt"));
  EXPECT_FALSE(matches_glob("a/b.txt", "a/?.md"));
  EXPECT_TRUE(matches_glob("part-3.txt", "part-[0-4].txt"));
  EXPECT_FALSE(matches_glob("part-5.txt", "part-[0-4].txt"));
  EXPECT_TRUE(matches_glob("part-x.txt", "part-[!0-4].txt") && matches_glob("part-].txt", "part-[]x].txt"));
  EXPECT_FALSE(matches_glob("part-3.txt", "part-[!0-4].txt") || matches_glob("a/b", "a[!x]b"));
  EXPECT_TRUE(matches_glob("a[b", "a[b"));  // no set
}

TEST(Documents, JsonLinesGiveAField) {
  const Folder folder;
  const std::string lines =
      "{\"text\": \"one \\u00e9\\n\", \"q\": \"x\"}\n\n{\"text\":\"\"}\r\n{\"text\": \"two\", \"q\": \"y\"}";
  EXPECT_EQ(documents_of(jsonl_source(folder.write("a.jsonl", lines))), (Texts{"one é\n", "two"}));
  EXPECT_EQ(documents_of(jsonl_source(folder.write("a.jsonl.gz", gzip(lines)))), (Texts{"one é\n", "two"}));
  EXPECT_EQ(documents_of(jsonl_source(folder.write("b.jsonl.zst", zstd(lines)))), (Texts{"one é\n", "two"}));
  EXPECT_EQ(documents_of(jsonl_source(folder.path())).size(), 6u);
  expect_error([&] { documents_of(jsonl_source(folder / "a.jsonl", "q")); },
               {"a.jsonl", "line 3", "no field 'q'", "text", "`field`"});
}

TEST(Documents, BadJsonNamesTheLine) {
  const Folder folder;
  const auto bad = [&](const std::string& lines, const std::vector<std::string>& parts) {
    expect_error([&] { documents_of(jsonl_source(folder.write("bad.jsonl", lines))); }, parts);
  };
  bad("{\"text\": \"a\"}\n{\"text\": \n", {"bad.jsonl", "line 2", "not JSON"});
  bad("{\"text\": \"a\"}\n\n{\"text\": 5}\n", {"bad.jsonl", "line 3", "'text'", "expected a string, found number"});
  bad("[1]\n", {"line 1", "expected a JSON object, found array"});
  bad("{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n", {"line 2", "byte 10", "invalid UTF-8"});
}

TEST(Documents, InvalidUtf8NamesTheByte) {
  const Folder folder;
  expect_error([&] { documents_of(text_source(folder.write("bad.txt", "abc\xc3(def"))); },
               {"bad.txt", "byte 3", "invalid UTF-8", "0xc3"});
  expect_error([&] { documents_of(text_source(folder.write("bad2.txt", "one\n<|endoftext|>\ntwo\xff"))); },
               {"bad2.txt", "byte 21"});
  expect_error([&] { documents_of(text_source(folder.write("c.txt.gz", gzip("abc\xe2\x82")))); },
               {"c.txt.gz", "byte 3"});
}

TEST(Documents, Utf8IsThatOfTheStandard) {
  for (const std::string good :
       {"", "abc", "é", "€", "𝄞", "\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf", "\xc2\x80"}) {
    EXPECT_EQ(invalid_utf8(good), -1) << good;
    EXPECT_EQ(invalid_utf8("0123456789" + good + "0123456789"), -1) << good;
  }
  for (const std::string bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                                "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\xc3", "\xf0\x9f\x98"}) {
    EXPECT_EQ(invalid_utf8(bad), 0);
    EXPECT_EQ(invalid_utf8("0123456789" + bad), 10);
    EXPECT_EQ(invalid_utf8("0123456789" + bad + "a"), 10);
  }
}

TEST(Documents, EmptyAndTruncatedFilesAreNamed) {
  const Folder folder;
  expect_error([&] { documents_of(text_source(folder.write("empty.txt", ""))); }, {"empty.txt", "is empty"});
  std::string text;
  std::mt19937 random(2);
  for (int i = 0; i < 300000; ++i) text += static_cast<char>('a' + random() % 26);
  for (const bool gz : {true, false}) {
    const std::string packed = gz ? gzip(text) : zstd(text), name = gz ? "t.txt.gz" : "t.txt.zst";
    EXPECT_EQ(documents_of(text_source(folder.write(name, packed))), Texts{text});
    EXPECT_EQ(documents_of(text_source(folder.write(name, packed + packed))), Texts{text + text});  // members, frames
    for (const size_t keep : {packed.size() - 1, packed.size() / 2, size_t{12}}) {
      expect_error([&] { documents_of(text_source(folder.write(name, packed.substr(0, keep)))); },
                   {name, "byte " + std::to_string(keep), "cut short"});
    }
    std::string damaged = packed;
    for (size_t i = damaged.size() / 2; i < damaged.size() / 2 + 200; ++i) damaged[i] = static_cast<char>(~damaged[i]);
    if (gz) expect_error([&] { documents_of(text_source(folder.write(name, damaged))); }, {name, "byte ", "gzip"});
    expect_error([&] { documents_of(text_source(folder.write(name, "no archive at all"))); }, {name, "byte "});
  }
}

TEST(Documents, SourcesThatMakeNoSenseAreRefused) {
  expect_error([] { check(SourceOptions{}); }, {"exactly one of text, jsonl, shards", "none"});
  SourceOptions both = text_source("a.txt");
  both.jsonl = "b.jsonl";
  expect_error([&] { check(both); }, {"'a'", "several"});
  SourceOptions weight = text_source("a.txt");
  weight.weight = 0;
  expect_error([&] { check(weight); }, {"weight: 0 is not positive"});
  SourceOptions dtype = text_source("a.txt");
  dtype.dtype = "uint16";
  expect_error([&] { check(dtype); }, {"dtype is for shards"});
}

TEST(Documents, NamesComeFromPaths) {
  EXPECT_EQ(default_name(text_source("foldoc")), "foldoc");
  EXPECT_EQ(default_name(text_source("corpora/tiny.shakespeare.txt")), "tiny.shakespeare");
  EXPECT_EQ(default_name(jsonl_source("/x/web.jsonl.zst")), "web");
  EXPECT_EQ(default_name(jsonl_source("/x/web/*.jsonl")), "web");
  EXPECT_EQ(default_name(shard_source("/x/web/")), "web");
  EXPECT_EQ(default_name(shard_source("/x/my_text_document.bin")), "my_text_document");
}

TEST(Documents, HeldOutIsAShareByHashAlone) {
  int64_t held = 0;
  for (int i = 0; i < 20000; ++i) held += held_out(document_hash("document " + std::to_string(i)), 0.1);
  EXPECT_NEAR(held, 2000, 5 * std::sqrt(20000 * 0.09));
  for (int i = 0; i < 1000; ++i) {  // a larger fraction holds out what a smaller one does
    const auto hash = document_hash(std::to_string(i));
    EXPECT_FALSE(held_out(hash, 0));
    if (held_out(hash, 0.05)) {
      EXPECT_TRUE(held_out(hash, 0.2));
    }
  }
}

TEST(Foldoc, EntriesAreCleaned) {
  EXPECT_EQ(
      clean_foldoc(
          "!!!Batch\n\n   <language, humour> A daft way of obfuscating {question\n   marks}, by the {MSDOS} {batch "
          "file}.\n\n"
          "   {esoteric} {wiki entry\n   (http://esolangs.org/wiki/)}.\n\n   [{Jargon File}]\n\n   (2014-10-25)\n\n"),
      "!!!Batch\n\nA daft way of obfuscating question marks, by the MSDOS batch file.\n\nesoteric wiki entry.\n");
  EXPECT_EQ(
      clean_foldoc(
          "FOO\nbar\n\n   1. <jargon> One\n   two.\n\n   Code:\n\n      x = 1\n      y = 2\n\n   {(http://a.b/)}.\n"),
      "FOO\n\n1. One two.\n\nCode:\n\n   x = 1\n   y = 2\n");
  EXPECT_EQ(clean_foldoc("Nothing\n\n   (1995-03-01)\n"), "");
}

TEST(Foldoc, IsReadWhereItIsInstalled) {
  if (!std::filesystem::exists(std::string(kFoldocFolder) + "/foldoc.index"))
    GTEST_SKIP() << "dict-foldoc is not installed";
  const auto documents = documents_of(text_source("foldoc"));
  EXPECT_GT(documents.size(), 10000u);
  size_t bytes = 0;
  int64_t database = 0, braces = 0, dates = 0;
  for (const auto& text : documents) {
    bytes += text.size();
    ASSERT_EQ(invalid_utf8(text), -1);
    database += text.starts_with("00-database");
    braces += text.find('{') != text.npos;
    dates += text.ends_with(")\n") && text.size() > 13 && text.substr(text.size() - 13, 2) == "\n(";
  }
  EXPECT_GT(bytes, 4'000'000u);
  EXPECT_EQ(database, 0);
  EXPECT_EQ(dates, 0);
  EXPECT_LT(braces, 30);  // what is left are braces of program text
  const auto free_software = std::find_if(documents.begin(), documents.end(),
                                          [](const auto& d) { return d.starts_with("free software\n\n"); });
  ASSERT_NE(free_software, documents.end());
  EXPECT_NE(free_software->find("Software that everyone is free to copy, redistribute and modify."), std::string::npos);
}

TEST(Foldoc, WhereItIsMissingTheErrorSaysHowToGetIt) {
  const Folder folder;
  expect_error([&] { read_foldoc(folder.path()); },
               {"foldoc.index", "apt-get install dict-foldoc", "name another text"});
  folder.write("foldoc.index", "foo\tA\tBAA\n");
  folder.write("foldoc.dict.dz", gzip("foo\n\n   bar\n"));
  expect_error([&] { read_foldoc(folder.path()); }, {"foldoc.index", "line 1", "ends at byte 4096"});
}

}  // namespace
}  // namespace cairn::data
