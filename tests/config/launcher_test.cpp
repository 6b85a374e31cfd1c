// labels: quick
// The launcher on a machine that is made up: what it installs is what CMake asks for, and what it passes on.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>

namespace {

namespace fs = std::filesystem;

std::string text_of(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

struct Ran {
  std::string output;
  int status;
};

Ran run(const std::string& command) {
  std::string output;
  FILE* pipe = popen(("(" + command + ") 2>&1").c_str(), "r");
  char buffer[4096];
  while (std::size_t n = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
  return {output, WEXITSTATUS(pclose(pipe))};
}

// A copy of the launcher beside empty source folders and a program that prints its arguments, as if it had been built.
class LauncherTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("cairn launcher " + std::to_string(getpid()) + "_" +
                                         testing::UnitTest::GetInstance()->current_test_info()->name());
    for (const char* folder : {"cmake", "models", "optim", "checkpoints", "trainer", "build/bin"})
      fs::create_directories(root_ / folder);
    fs::copy_file(fs::path(CAIRN_SOURCE_DIR) / "cairn", root_ / "cairn");
    std::ofstream(root_ / "CMakeLists.txt") << "\n";
    for (const char* package : {"torch-2.11.0", "nvidia_cuda_cupti-13.0.85", "nvidia_cuda_runtime-13.0.96",
                                "nvidia_nccl_cu13-2.28.9", "plotly-7.1.0"}) {
      const fs::path folder = root_ / ".venv/lib/python3.11/site-packages" / (std::string(package) + ".dist-info");
      fs::create_directories(folder);
      std::ofstream(folder / "RECORD") << "\n";
    }
    std::ofstream(root_ / "build/bin/cairn") << "#!/bin/bash\nprintf '<%s>' \"$@\"\necho \" in $PWD\"\nexit 7\n";
    fs::permissions(root_ / "build/bin/cairn", fs::perms::owner_all);
    for (const auto& entry : fs::recursive_directory_iterator(root_))
      fs::last_write_time(entry.path(), fs::file_time_type::clock::now() - std::chrono::hours(1));
    std::ofstream(root_ / "build/.built") << root_.string() << "\n";
    // A file system's clock ticks a few times in ten milliseconds.
    fs::last_write_time(root_ / "build/.built", fs::file_time_type::clock::now() - std::chrono::minutes(30));
  }
  void TearDown() override { fs::remove_all(root_); }

  // Without apt-get, cmake, ninja: a launcher that wants to build says so and ends with 1.
  std::string bare() {
    fs::create_directories(root_ / "bin");
    for (const char* name : {"bash", "readlink", "find", "mkdir", "flock", "cat", "grep", "sed", "dirname"})
      if (!fs::exists(root_ / "bin" / name)) fs::create_symlink(fs::path("/usr/bin") / name, root_ / "bin" / name);
    return "PATH='" + (root_ / "bin").string() + "' ";
  }

  // Beside the tools of bare(): a machine with apt, where cmake stops the launcher after the set-up; what is called is
  // in `calls`.
  std::string debian(bool sudo) {
    const std::string path = bare();
    for (const char* name : {"env", "tee", "rm", "mv", "nproc", "id"})
      fs::create_symlink(fs::path("/usr/bin") / name, root_ / "bin" / name);
    const auto write = [&](const std::string& name, const std::string& text) {
      std::ofstream(root_ / "bin" / name) << "#!/bin/bash\n" << text << "\n";
      fs::permissions(root_ / "bin" / name, fs::perms::all);
    };
    const std::string log = "echo \"${0##*/} $*\" >>'" + (root_ / "calls").string() + "'\n";
    write("dpkg-query", "echo 'ii  cmake'");
    write("apt-cache", "exit 0");
    write("apt-get", log);
    write("cmake", log + "echo cmake stops here; exit 1");
    if (sudo) write("sudo", log + "exec \"$@\"");
    std::ofstream(root_ / "trainer/new.cpp") << "\n";
    if (::geteuid() != 0) return path;
    // As somebody else: root needs no sudo.
    run("chmod -R a+rwX '" + root_.string() + "'");
    return path + "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups ";
  }

  fs::path root_;
};

TEST(Launcher, InstallsWhatCMakeAsksFor) {
  const fs::path source = CAIRN_SOURCE_DIR;
  const std::string launcher = text_of(source / "cairn"), packages = text_of(source / "cmake/Packages.cmake");
  const std::regex module("cairn_package\\(\\w+ ([^ )]+)\\)|IMPORTED_TARGET ([a-z0-9-]+)\\)");
  int count = 0;
  for (std::sregex_iterator at(packages.begin(), packages.end(), module), end; at != end; ++at, ++count) {
    const std::string name = (*at)[1].matched ? (*at)[1].str() : (*at)[2].str();
    EXPECT_NE(launcher.find("|pc:" + name + "|"), std::string::npos)
        << name << " is in cmake/Packages.cmake, not in the launcher";
  }
  EXPECT_GT(count, 5);
  // and of LibTorch the version that the tests are pinned to
  EXPECT_NE(text_of(source / "tests/oracles/requirements.txt").find("\ntorch==2.11.0\n"), std::string::npos);
  EXPECT_NE(launcher.find("torch_version=2.11.0\n"), std::string::npos);
}

TEST_F(LauncherTest, PassesArgumentsOnFromAnywhere) {
  const fs::path link = root_ / "bin link";
  fs::create_symlink(root_ / "cairn", link);
  const auto ran = run("cd / && '" + link.string() + "' train 'two words' '' 'q\"uo$te' \"it's\" '*' 'a=[1, 2]'");
  EXPECT_EQ(ran.output, "<train><two words><><q\"uo$te><it's><*><a=[1, 2]> in /\n");
  EXPECT_EQ(ran.status, 7);
}

TEST_F(LauncherTest, BuildsAgainOnlyAfterAChange) {
  const std::string call = bare() + "'" + (root_ / "cairn").string() + "' x";
  EXPECT_EQ(run(call).status, 7);  // nothing but bash, readlink and find is called
  std::ofstream(root_ / "trainer/new.cpp") << "\n";
  const auto ran = run(call);
  EXPECT_EQ(ran.status, 1);
  EXPECT_NE(ran.output.find("cairn: there is no apt-get here, so nothing was installed. Missing:\n"), std::string::npos)
      << ran.output;
  for (const char* lost :
       {"command cmake ", "command ninja ", "library yaml-cpp (pkg-config) ", "Debian: ninja-build\n"})
    EXPECT_NE(ran.output.find(lost), std::string::npos) << lost << " in\n" << ran.output;
  EXPECT_EQ(ran.output.find("ccache"), std::string::npos);  // a help, not a need
}

TEST_F(LauncherTest, InstallsThroughSudoWhatIsMissing) {
  const auto ran = run(debian(true) + "'" + (root_ / "cairn").string() + "' x");
  EXPECT_EQ(ran.status, 1);
  const size_t named = ran.output.find("cairn: installs these Debian packages with apt-get:\n");
  ASSERT_NE(named, std::string::npos) << ran.output;
  for (const char* line :
       {"\n         ninja-build          builds\n", "\n         dict-foldoc          text for the quickstart"})
    EXPECT_NE(ran.output.find(line, named), std::string::npos) << line << " in\n" << ran.output;
  EXPECT_EQ(ran.output.find("\n         cmake "), std::string::npos) << "is installed\n" << ran.output;
  EXPECT_NE(ran.output.find("cmake stops here"), std::string::npos) << ran.output;
  const std::string calls = text_of(root_ / "calls");
  EXPECT_TRUE(calls.starts_with("sudo env DEBIAN_FRONTEND=noninteractive apt-get ")) << calls;
  EXPECT_NE(calls.find(" install -y --no-install-recommends ninja-build g++ pkg-config "), std::string::npos) << calls;
  EXPECT_NE(calls.find(" install -y --no-install-recommends dict-foldoc\n"), std::string::npos) << calls;
}

TEST_F(LauncherTest, WithoutSudoItSaysWhatToRun) {
  const auto ran = run(debian(false) + "'" + (root_ / "cairn").string() + "' x");
  EXPECT_EQ(ran.status, 1);
  EXPECT_NE(
      ran.output.find(
          "cairn: installing needs root, and there is no sudo here; as root, run: apt-get install ninja-build g++ "),
      std::string::npos)
      << ran.output;
  EXPECT_FALSE(fs::exists(root_ / "calls"));
}

TEST_F(LauncherTest, AMovedProjectIsBuiltAgain) {
  std::ofstream(root_ / "build/.built") << "/elsewhere\n";
  EXPECT_EQ(run(bare() + "'" + (root_ / "cairn").string() + "' x").status, 1);
}

}  // namespace
