#include "inference_service/server.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gla/inference/v1/inference.grpc.pb.h"
#include "gtest/gtest.h"
#include "inference_service/testing/tcp_relay.h"
#include "inference_service/testing/tiny_checkpoint.h"

namespace gla::inference {
namespace {

using grpc::StatusCode;

const std::string& TinyCheckpoint() {
  static const auto* path = new std::string(WriteTinyCheckpoint("tiny", 1));
  return *path;
}
const std::string& OtherCheckpoint() {
  static const auto* path = new std::string(WriteTinyCheckpoint("other", 2));
  return *path;
}

v1::GenerateRequest Request(const std::string& text, int max_new_tokens) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text(text);
  request.mutable_sampling()->set_max_new_tokens(max_new_tokens);
  return request;
}

// What a client gets from one stream.
struct Received {
  grpc::Status status;
  std::optional<v1::Started> started;
  std::vector<int32_t> tokens;
  std::string text;
  std::optional<v1::Finished> finished;

  void Add(const v1::GenerateResponse& response) {
    if (response.has_started()) {
      EXPECT_FALSE(started.has_value());
      started = response.started();
    } else if (response.has_delta()) {
      const v1::Delta& delta = response.delta();
      EXPECT_TRUE(started.has_value() && !finished.has_value());
      EXPECT_EQ(delta.offset(), static_cast<int64_t>(tokens.size()));
      tokens.insert(tokens.end(), delta.token_ids().begin(),
                    delta.token_ids().end());
      text += delta.text();
    } else {
      EXPECT_FALSE(finished.has_value());
      finished = response.finished();
    }
  }
};

// One stream, read step by step.
class Stream {
 public:
  Stream(const std::shared_ptr<grpc::Channel>& channel,
         const v1::GenerateRequest& request,
         absl::Time deadline = absl::Now() + absl::Seconds(60))
      : stub_(v1::GenerationService::NewStub(channel)) {
    context_.set_deadline(absl::ToChronoTime(deadline));
    reader_ = stub_->Generate(&context_, request);
  }
  bool Read(Received* received) {
    v1::GenerateResponse response;
    if (!reader_->Read(&response)) return false;
    received->Add(response);
    return true;
  }
  Received ReadAll() {
    Received received;
    while (Read(&received)) {
    }
    received.status = reader_->Finish();
    return received;
  }
  void Cancel() { context_.TryCancel(); }
  grpc::Status Finish() { return reader_->Finish(); }

 private:
  const std::unique_ptr<v1::GenerationService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
};

class ServerTest : public testing::Test {
 protected:
  void SetUp() override { Start({.state_slots = 10}); }
  void Start(ServingOptions options) {
    TearDown();
    store_ = std::make_unique<ModelStore>(options);
    tiny_ = store_->Load("models/tiny", TinyCheckpoint()).value();
    server_ = Server::Start("127.0.0.1:0", store_.get()).value();
    channel_ = NewChannel(server_->port());
  }
  void TearDown() override {
    channel_ = nullptr;
    server_ = nullptr;
    tiny_ = nullptr;
  }

  // A connection of its own, with the smallest window for what was not read.
  static std::shared_ptr<grpc::Channel> NewChannel(int port) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                     grpc::InsecureChannelCredentials(),
                                     arguments);
  }
  Received Generate(const v1::GenerateRequest& request) {
    return Stream(channel_, request).ReadAll();
  }
  absl::StatusOr<v1::Model> LoadModel(const std::string& name,
                                      const std::string& checkpoint) {
    v1::LoadModelRequest request;
    request.set_name(name);
    request.set_checkpoint(checkpoint);
    grpc::ClientContext context;
    v1::Model model;
    const grpc::Status status = v1::ModelService::NewStub(channel_)->LoadModel(
        &context, request, &model);
    if (status.ok()) return model;
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        status.error_message());
  }
  v1::ListModelsResponse ListModels() {
    grpc::ClientContext context;
    v1::ListModelsResponse response;
    const grpc::Status status = v1::ModelService::NewStub(channel_)->ListModels(
        &context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  // A unary call of raw bytes, for services whose schemas are not installed.
  grpc::Status Call(const std::string& method, const std::string& bytes,
                    std::string* answer) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::Status result;
    absl::Notification done;
    stub.UnaryCall(&context, method, grpc::StubOptions(), &request, &response,
                   [&](grpc::Status status) {
                     result = status;
                     done.Notify();
                   });
    done.WaitForNotification();
    std::vector<grpc::Slice> slices;
    answer->clear();
    if (result.ok() && response.Dump(&slices).ok()) {
      for (const grpc::Slice& s : slices) {
        answer->append(s.begin(), s.end());
      }
    }
    return result;
  }
  // grpc.health.v1: 1 SERVING, 2 NOT_SERVING, 0 unknown service.
  int Health(const std::string& service) {
    std::string request = "\x0a";
    request += static_cast<char>(service.size());
    std::string answer;
    const grpc::Status status =
        Call("/grpc.health.v1.Health/Check", request + service, &answer);
    if (status.error_code() == StatusCode::NOT_FOUND) return 0;
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(answer.size(), 2u);
    return answer.empty() ? -1 : answer.back();
  }
  void AwaitIdle() {
    EXPECT_TRUE(tiny_->engine().AwaitStats(
        [](const EngineStats& s) { return s.idle(); },
        absl::Now() + absl::Seconds(20)));
  }
  void AwaitQueued(int n) {
    EXPECT_TRUE(tiny_->engine().AwaitStats(
        [n](const EngineStats& s) { return s.queued == n; },
        absl::Now() + absl::Seconds(20)));
  }

  std::unique_ptr<ModelStore> store_;
  std::shared_ptr<ServedModel> tiny_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

// A request that runs until it is stopped.
v1::GenerateRequest Endless() { return Request("x", 100'000'000); }

TEST_F(ServerTest, StreamsACompletion) {
  v1::GenerateRequest request = Request("In the beginning", 50);
  request.set_model("models/tiny");
  request.mutable_sampling()->set_seed(5);
  const Received received = Generate(request);
  ASSERT_TRUE(received.status.ok()) << received.status.error_message();
  EXPECT_EQ(received.started->model(), "models/tiny");
  EXPECT_EQ(received.started->seed(), 5u);
  EXPECT_EQ(received.started->prompt_tokens(), 16);
  EXPECT_EQ(received.finished->reason(), v1::Finished::LENGTH);
  EXPECT_EQ(received.finished->prompt_tokens(), 16);
  EXPECT_EQ(received.finished->output_tokens(), 50);
  EXPECT_EQ(received.tokens.size(), 50u);
  EXPECT_EQ(received.text,
            std::string(received.tokens.begin(), received.tokens.end()));
  AwaitIdle();
}

TEST_F(ServerTest, EchoesASeedThatReproducesTheOutput) {
  v1::GenerateRequest request = Request("In the beginning", 50);
  const Received first = Generate(request);
  EXPECT_NE(Generate(request).tokens, first.tokens);
  request.mutable_sampling()->set_seed(first.started->seed());
  EXPECT_EQ(Generate(request).tokens, first.tokens);
}

TEST_F(ServerTest, GivesTheSameTokensAloneAndAmongEightNeighbours) {
  v1::GenerateRequest request = Request("And God said", 60);
  request.mutable_sampling()->set_seed(3);
  const Received alone = Generate(request);
  std::vector<std::unique_ptr<Stream>> neighbours;
  for (int i = 0; i < 8; ++i) {
    neighbours.push_back(std::make_unique<Stream>(channel_, Endless()));
    Received received;
    while (received.tokens.empty()) neighbours.back()->Read(&received);
  }
  EXPECT_EQ(Generate(request).tokens, alone.tokens);
}

TEST_F(ServerTest, StopsAtAStopString) {
  v1::GenerateRequest request = Request("And God said", 60);
  request.mutable_sampling()->set_temperature(0);
  const Received whole = Generate(request);
  // Two ASCII characters from the middle, which lie in different tokens.
  size_t middle = 20;
  while ((whole.text[middle] | whole.text[middle + 1]) & 0x80) ++middle;
  const std::string stop = whole.text.substr(middle, 2);
  request.mutable_sampling()->add_stop(stop);
  const Received received = Generate(request);
  ASSERT_TRUE(received.status.ok()) << received.status.error_message();
  EXPECT_EQ(received.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(received.finished->reason(), v1::Finished::STOP);
  EXPECT_EQ(received.finished->matched_stop(), stop);
}

TEST_F(ServerTest, RefusesBadRequestsByName) {
  v1::GenerateRequest request = Request("x", 5);
  request.set_model("models/nobody");
  Received received = Generate(request);
  EXPECT_EQ(received.status.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(received.status.error_message(),
            "model: \"models/nobody\" is not loaded; loaded: models/tiny");
  EXPECT_FALSE(received.started.has_value());

  received = Generate(Request("", 5));
  EXPECT_EQ(received.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(received.status.error_message(), "prompt.text: empty");

  received = Generate(Request("abc\xff", 5));
  EXPECT_EQ(received.status.error_code(), StatusCode::INVALID_ARGUMENT);

  request = Request("x", 5);
  request.mutable_prompt()->mutable_tokens()->add_ids(256);
  received = Generate(request);
  EXPECT_EQ(received.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(received.status.error_message(),
            "prompt.tokens.ids[0]: want [0, 256), got 256");
  AwaitIdle();
}

TEST_F(ServerTest, RefusesAPromptOverTheMessageLimit) {
  EXPECT_EQ(Generate(Request(std::string(5 << 20, 'x'), 5)).status.error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServerTest, FreesTheSlotWhenTheClientCancels) {
  Stream stream(channel_, Endless());
  Received received;
  while (received.tokens.empty()) ASSERT_TRUE(stream.Read(&received));
  EXPECT_EQ(ListModels().models(0).state_slots_free(), 9);
  stream.Cancel();
  AwaitIdle();
  EXPECT_EQ(ListModels().models(0).state_slots_free(), 10);
  while (stream.Read(&received)) {
  }
  EXPECT_EQ(stream.Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(ServerTest, CancelsInTheQueue) {
  Start({.state_slots = 1});
  Stream runs(channel_, Endless());
  Received received;
  while (received.tokens.empty()) ASSERT_TRUE(runs.Read(&received));
  Stream waits(channel_, Endless());
  AwaitQueued(1);
  waits.Cancel();
  AwaitQueued(0);
  runs.Cancel();
  AwaitIdle();
}

TEST_F(ServerTest, FreesTheSlotWhenTheClientIsGone) {
  TcpRelay relay(server_->port());
  Stream stream(NewChannel(relay.port()), Endless());
  Received received;
  while (received.tokens.empty()) ASSERT_TRUE(stream.Read(&received));
  EXPECT_EQ(tiny_->engine().stats().slots_free, 9);
  relay.Cut();
  AwaitIdle();
}

TEST_F(ServerTest, ParksAClientThatDoesNotReadAndFreesItsSlotWhenItGoes) {
  Stream silent(channel_, Endless());
  EXPECT_TRUE(tiny_->engine().AwaitStats(
      [](const EngineStats& s) { return s.parked == 1; },
      absl::Now() + absl::Seconds(50)));
  EXPECT_TRUE(Generate(Request("x", 300)).status.ok());
  silent.Cancel();
  AwaitIdle();
}

TEST_F(ServerTest, EndsAtTheDeadline) {
  Stream stream(channel_, Endless(), absl::Now() + absl::Milliseconds(200));
  EXPECT_EQ(stream.ReadAll().status.error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  AwaitIdle();
}

TEST_F(ServerTest, RefusesWhatTheQueueCannotHold) {
  Start({.state_slots = 1, .engine = {.max_queued = 1}});
  Stream runs(channel_, Endless());
  Received received;
  while (received.tokens.empty()) ASSERT_TRUE(runs.Read(&received));
  Stream waits(channel_, Endless());
  AwaitQueued(1);
  EXPECT_EQ(Generate(Request("x", 1)).status.error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  runs.Cancel();
  while (received.tokens.empty()) ASSERT_TRUE(waits.Read(&received));
}

TEST_F(ServerTest, ServesManyMoreRequestsThanSlots) {
  Start({.state_slots = 3});
  v1::GenerateRequest request = Request("And", 20);
  request.mutable_sampling()->set_seed(3);
  const std::vector<int32_t> alone = Generate(request).tokens;
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 40; ++i) {
    streams.push_back(std::make_unique<Stream>(channel_, request));
  }
  for (const auto& stream : streams) EXPECT_EQ(stream->ReadAll().tokens, alone);
}

TEST_F(ServerTest, ListsLoadsAndReplacesModels) {
  const v1::Model tiny = ListModels().models(0);
  EXPECT_EQ(tiny.name(), "models/tiny");
  EXPECT_EQ(tiny.version(), 1);
  EXPECT_EQ(tiny.checkpoint(), TinyCheckpoint());
  EXPECT_EQ(tiny.vocab_size(), 256);
  EXPECT_EQ(tiny.state_slots(), 10);
  EXPECT_EQ(tiny.state_slots_free(), 10);
  EXPECT_EQ(LoadModel("models/second", OtherCheckpoint())->version(), 1);
  EXPECT_EQ(LoadModel("models/second", TinyCheckpoint())->version(), 2);
  EXPECT_EQ(ListModels().models_size(), 2);

  v1::GenerateRequest request = Request("x", 20);
  EXPECT_EQ(Generate(request).status.error_code(),
            StatusCode::INVALID_ARGUMENT);  // which of the two?
  request.set_model("models/second");
  EXPECT_EQ(Generate(request).started->model(), "models/second");
}

TEST_F(ServerTest, AFailedLoadChangesNothing) {
  EXPECT_EQ(LoadModel("models/tiny", "/none").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadModel("models/tiny", "").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(LoadModel("Tiny", TinyCheckpoint()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ListModels().models(0).version(), 1);
  EXPECT_TRUE(Generate(Request("x", 3)).status.ok());
}

TEST_F(ServerTest, TellsItsHealth) {
  EXPECT_EQ(Health(""), 1);
  EXPECT_EQ(Health("gla.inference.v1.GenerationService"), 1);
  EXPECT_EQ(Health("gla.inference.v1.ModelService"), 1);
  EXPECT_EQ(Health("models/tiny"), 1);
  EXPECT_EQ(Health("models/second"), 0);
  ASSERT_TRUE(LoadModel("models/second", OtherCheckpoint()).ok());
  EXPECT_EQ(Health("models/second"), 1);
}

TEST_F(ServerTest, GenerationIsNotServedWithoutAModel) {
  ModelStore empty({.state_slots = 1});
  const auto server = Server::Start("127.0.0.1:0", &empty).value();
  channel_ = NewChannel(server->port());
  EXPECT_EQ(Health(""), 1);
  EXPECT_EQ(Health("gla.inference.v1.GenerationService"), 2);
  EXPECT_EQ(Generate(Request("x", 1)).status.error_code(),
            StatusCode::NOT_FOUND);
  ASSERT_TRUE(LoadModel("models/tiny", TinyCheckpoint()).ok());
  EXPECT_EQ(Health("gla.inference.v1.GenerationService"), 1);
}

TEST_F(ServerTest, HasReflection) {
  std::string answer;  // list_services: "*"
  const grpc::Status status =
      Call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
           "\x3a\x01*", &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_NE(answer.find("gla.inference.v1.GenerationService"),
            std::string::npos);
  EXPECT_NE(answer.find("gla.inference.v1.ModelService"), std::string::npos);
}

TEST_F(ServerTest, LetsRunningRequestsFinishAndTakesNoMore) {
  Stream stream(channel_, Request("x", 3000));
  Received received;
  while (received.tokens.empty()) ASSERT_TRUE(stream.Read(&received));
  std::thread shutdown([&] { server_->Shutdown(absl::Seconds(60)); });
  // The drain refuses newcomers, first by name and then by closing the door.
  while (Generate(Request("x", 1)).status.ok()) {
  }
  EXPECT_EQ(Generate(Request("x", 1)).status.error_code(),
            StatusCode::UNAVAILABLE);
  while (stream.Read(&received)) {
  }
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_EQ(received.tokens.size(), 3000u);
  EXPECT_TRUE(received.finished.has_value());
  shutdown.join();
}

TEST_F(ServerTest, EndsWhatDoesNotFinishInTime) {
  Stream stream(channel_, Endless());
  Received received;
  while (received.tokens.empty()) ASSERT_TRUE(stream.Read(&received));
  std::thread shutdown([&] { server_->Shutdown(absl::ZeroDuration()); });
  while (stream.Read(&received)) {
  }
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the server is shutting down");
  EXPECT_FALSE(received.finished.has_value());
  shutdown.join();
}

TEST_F(ServerTest, SaysThatAPortIsInUse) {
  const std::string address = absl::StrCat("127.0.0.1:", server_->port());
  const absl::Status status = Server::Start(address, store_.get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find(address), std::string::npos) << status;
}

}  // namespace
}  // namespace gla::inference
