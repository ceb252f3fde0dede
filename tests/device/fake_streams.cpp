#include "tests/device/fake_streams.h"

#include <algorithm>
#include <map>

namespace moe {

FakeStream& FakeScheduler::AddStream() {
  streams_.push_back(std::make_unique<FakeStream>());
  streams_.back()->number = static_cast<int>(streams_.size());
  return *streams_.back();
}

void FakeScheduler::RunSome() {
  for (auto pieces = random_() % 8; pieces > 0; --pieces) {
    if (!RunFrontOfAny()) return;
  }
}

bool FakeScheduler::RunTowards(const FakePoint& point) {
  if (random_() % 2 == 0) return RunNeeded(point) || RunFrontOfAny();
  return RunFrontOfAny();
}

void FakeScheduler::RunAll() {
  while (RunFrontOfAny()) {
  }
}

bool FakeScheduler::Ready(const FakeWork& work) {
  return (work.waits_for == nullptr || work.waits_for->done) && (!work.ready || work.ready());
}

bool FakeScheduler::RunFrontOfAny() {
  std::vector<FakeStream*> able;
  for (const auto& stream : streams_) {
    if (!stream->queue.empty() && Ready(stream->queue.front())) able.push_back(stream.get());
  }
  if (able.empty()) return false;
  RunFront(*able[random_() % able.size()]);
  return true;
}

// The front of the stream that records the point, or, where that one waits for another point, of that one's stream.
bool FakeScheduler::RunNeeded(const FakePoint& point) {
  const auto recorder = std::ranges::find_if(streams_, [&](const auto& stream) {
    return std::ranges::any_of(stream->queue, [&](const FakeWork& work) { return work.records.get() == &point; });
  });
  if (recorder == streams_.end()) return false;
  const FakeWork& front = (*recorder)->queue.front();
  if (front.waits_for != nullptr && !front.waits_for->done) return RunNeeded(*front.waits_for);
  if (!Ready(front)) return false;
  RunFront(**recorder);
  return true;
}

void FakeScheduler::RunFront(FakeStream& stream) {
  FakeWork work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (work.run) execute_(work);
  if (!work.graph.empty()) RunGraph(work.graph);
  if (work.records != nullptr) work.records->done = true;
}

// The pieces of one stream in order, those of several as the waits allow.
void FakeScheduler::RunGraph(std::vector<FakeCaptured>& pieces) {
  std::map<int, std::deque<std::size_t>> waiting;  // places by stream
  for (std::size_t place = 0; place < pieces.size(); ++place) waiting[pieces[place].stream].push_back(place);
  std::vector<bool> done(pieces.size(), false);
  for (std::size_t left = pieces.size(); left > 0; --left) {
    std::vector<int> able;
    for (const auto& [stream, places] : waiting) {
      const FakeCaptured& front = pieces[places.front()];
      if (!front.after.has_value() || done[*front.after]) able.push_back(stream);
    }
    MOE_CHECK(!able.empty(), "a captured graph waits for itself");
    std::deque<std::size_t>& places = waiting[able[random_() % able.size()]];
    const std::size_t place = places.front();
    places.pop_front();
    if (pieces[place].work.run) execute_(pieces[place].work);
    done[place] = true;
    std::erase_if(waiting, [](const auto& entry) { return entry.second.empty(); });
  }
}

std::string FakeScheduler::Unjoined(const FakeCapture& capture) {
  // Backwards from the origin's last piece, along streams and waits.
  std::vector<bool> joined(capture.pieces.size(), false);
  std::map<int, std::size_t> reached{{capture.origin->number, capture.pieces.size()}};  // per stream, all before this
  for (std::size_t place = capture.pieces.size(); place-- > 0;) {
    const FakeCaptured& piece = capture.pieces[place];
    const auto limit = reached.find(piece.stream);
    if (limit == reached.end() || place >= limit->second) continue;
    joined[place] = true;
    if (!piece.after.has_value()) continue;
    std::size_t& other = reached[capture.pieces[*piece.after].stream];
    other = std::max(other, *piece.after + 1);
  }
  for (std::size_t place = 0; place < joined.size(); ++place) {
    const FakeCaptured& piece = capture.pieces[place];
    if (!joined[place] && piece.work.run) {
      return Cat("cudaErrorStreamCaptureUnjoined: the origin never waits for work of stream ", piece.stream);
    }
  }
  return "";
}

}  // namespace moe
