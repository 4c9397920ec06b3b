package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "interop/gen/conversations/v1"
)

const nobody = "conv_nobody"

// lifecycleSteps are the steps about how conversations end, come back, branch off and move. Each has conversations of
// its own.
type lifecycleSteps struct {
	*scenario
	transfers pb.TransferServiceClient
	erasures  pb.ErasureServiceClient
}

// retention makes a conversation that ends, and takes the end back.
func (l *lifecycleSteps) retention(ctx context.Context) error {
	made, err := l.createWith(ctx, time.Hour)
	if err != nil {
		return err
	}
	lives := made.GetExpireTime().AsTime().Sub(made.GetCreateTime().AsTime())
	if (lives-time.Hour).Abs() > time.Minute || made.GetIdleTtl().AsDuration() != 30*time.Minute {
		return fmt.Errorf("lives for %v: %v", lives, made)
	}
	kept, err := l.client.UpdateConversation(ctx, &pb.UpdateConversationRequest{
		Conversation: &pb.Conversation{Id: made.GetId()},
		UpdateMask:   &fieldmaskpb.FieldMask{Paths: []string{"expire_time", "idle_ttl"}},
	})
	if err != nil {
		return err
	}
	if kept.GetExpireTime() != nil || kept.GetIdleTtl() != nil {
		return fmt.Errorf("still ends: %v", kept)
	}
	_, err = l.createWith(ctx, 59*time.Second)
	if err := expect(err, codes.InvalidArgument, "FIELD_INVALID"); err != nil {
		return err
	}
	bad, _ := detail[*errdetails.BadRequest](err)
	if found := bad.GetFieldViolations(); len(found) != 1 || found[0].GetField() != "conversation.ttl" {
		return fmt.Errorf("unexpected violations: %v", bad)
	}
	return nil
}

func (l *lifecycleSteps) createWith(ctx context.Context, ttl time.Duration) (*pb.Conversation, error) {
	return l.client.CreateConversation(ctx, &pb.CreateConversationRequest{Conversation: &pb.Conversation{
		Expiration: &pb.Conversation_Ttl{Ttl: durationpb.New(ttl)},
		IdleTtl:    durationpb.New(30 * time.Minute),
	}})
}

// rewind deletes what is behind a place, unless somebody has appended meanwhile.
func (l *lifecycleSteps) rewind(ctx context.Context) error {
	made, before, err := l.branchWithItems(ctx, "one", "two", "three")
	if err != nil {
		return err
	}
	now, err := l.client.RewindConversation(ctx, &pb.RewindConversationRequest{
		ConversationId:       made.conversation.GetId(),
		Sequence:             proto.Int64(1),
		ExpectedLastSequence: proto.Int64(3),
		RequestId:            uuid.NewString(),
	})
	if err != nil {
		return err
	}
	if now.GetLastSequence() != 3 { // places are never used again
		return fmt.Errorf("want last_sequence 3, got %v", now)
	}
	if err := made.expectItems(ctx, before[:1]); err != nil {
		return err
	}
	_, err = l.client.RewindConversation(ctx, &pb.RewindConversationRequest{
		ConversationId:       made.conversation.GetId(),
		Sequence:             proto.Int64(0),
		ExpectedLastSequence: proto.Int64(2),
	})
	return expect(err, codes.Aborted, "SEQUENCE_MISMATCH")
}

// fork copies the items up to a place, and finds the fork by its source.
func (l *lifecycleSteps) fork(ctx context.Context) error {
	made, items, err := l.branchWithItems(ctx, "one", "two")
	if err != nil {
		return err
	}
	fork, err := l.forkOf(ctx, made, &pb.ForkConversationRequest{
		Through: &pb.ForkConversationRequest_ThroughSequence{ThroughSequence: 1},
	})
	if err != nil {
		return err
	}
	from := &pb.Fork{ConversationId: made.conversation.GetId(), Sequence: 1}
	if !proto.Equal(fork.conversation.GetForkedFrom(), from) {
		return fmt.Errorf("want a fork of %v, got %v", from, fork.conversation)
	}
	if err := fork.expectItems(ctx, items[:1]); err != nil {
		return err
	}
	list, err := l.client.ListConversations(ctx, &pb.ListConversationsRequest{Filter: forksOf(made)})
	if err != nil {
		return err
	}
	if found := list.GetConversations(); len(found) != 1 || found[0].GetId() != fork.conversation.GetId() {
		return fmt.Errorf("want one fork, got %v", found)
	}
	_, err = l.forkOf(ctx, made, &pb.ForkConversationRequest{
		Through: &pb.ForkConversationRequest_ThroughItemId{ThroughItemId: "msg_nobody"},
	})
	return expect(err, codes.NotFound, "ITEM_NOT_FOUND")
}

func (l *lifecycleSteps) forkOf(ctx context.Context, source *scenario, request *pb.ForkConversationRequest) (*scenario, error) {
	request.ConversationId, request.RequestId = source.conversation.GetId(), uuid.NewString()
	made, err := l.client.ForkConversation(ctx, request)
	return &scenario{client: l.client, conversation: made}, err
}

// undelete brings back what was deleted, as it was.
func (l *lifecycleSteps) undelete(ctx context.Context) error {
	made, items, err := l.branchWithItems(ctx, "one")
	if err != nil {
		return err
	}
	id := made.conversation.GetId()
	_, err = l.client.UndeleteConversation(ctx, &pb.UndeleteConversationRequest{ConversationId: id})
	if err := expect(err, codes.AlreadyExists, "CONVERSATION_EXISTS"); err != nil {
		return err
	}
	if _, err := l.client.DeleteConversation(ctx, &pb.DeleteConversationRequest{ConversationId: id}); err != nil {
		return err
	}
	if err := made.expectGone(ctx); err != nil {
		return err
	}
	back, err := l.client.UndeleteConversation(ctx, &pb.UndeleteConversationRequest{ConversationId: id})
	if err != nil || !proto.Equal(back, made.conversation) {
		return fmt.Errorf("want %v, got %v, %v", made.conversation, back, err)
	}
	if err := made.expectItems(ctx, items); err != nil {
		return err
	}
	_, err = l.client.UndeleteConversation(ctx, &pb.UndeleteConversationRequest{ConversationId: nobody})
	return expect(err, codes.NotFound, "CONVERSATION_NOT_FOUND")
}

// deleteMany counts what matches a filter, then deletes it.
func (l *lifecycleSteps) deleteMany(ctx context.Context) error {
	made, err := l.branch(ctx, "one")
	for range 2 {
		if err == nil {
			_, err = l.forkOf(ctx, made, &pb.ForkConversationRequest{})
		}
	}
	if err != nil {
		return err
	}
	for _, call := range []struct {
		validateOnly bool
		count        int32
	}{{true, 2}, {false, 2}, {false, 0}} {
		answer, err := l.client.DeleteConversations(ctx, &pb.DeleteConversationsRequest{
			Filter: forksOf(made), ValidateOnly: call.validateOnly,
		})
		if err != nil || answer.GetDeletedCount() != call.count || answer.GetHasMore() {
			return fmt.Errorf("want %v, got %v, %v", call, answer, err)
		}
	}
	_, err = l.client.DeleteConversations(ctx, &pb.DeleteConversationsRequest{Filter: "topic"})
	return expect(err, codes.InvalidArgument, "FILTER_INVALID")
}

// transfer goes on with an export behind its first record, and imports what was erased.
func (l *lifecycleSteps) transfer(ctx context.Context) error {
	made, _, err := l.branchWithItems(ctx, "one", "two")
	if err != nil {
		return err
	}
	fork, err := l.forkOf(ctx, made, &pb.ForkConversationRequest{})
	if err != nil {
		return err
	}
	items, err := fork.list(ctx, pb.Order_ORDER_ASCENDING, 100)
	if err != nil {
		return err
	}
	records, err := l.exportInTwo(ctx, fork.conversation.GetId())
	if err != nil {
		return err
	}
	if len(records) != 3 || records[0].GetConversation() == nil || records[1].GetItems() == nil || records[2].GetEnd() == nil {
		return fmt.Errorf("want head, items and end, got %v", records)
	}
	if err := l.erase(ctx, made); err != nil {
		return err
	}
	if err := fork.expectGone(ctx); err != nil {
		return err
	}
	for _, created := range []bool{true, false} {
		if err := l.importAll(ctx, records, created); err != nil {
			return err
		}
	}
	if err := fork.expectItems(ctx, items); err != nil {
		return err
	}
	_, err = l.exportAll(ctx, &pb.ExportConversationsRequest{ConversationIds: []string{nobody}})
	return expect(err, codes.NotFound, "CONVERSATION_NOT_FOUND")
}

// exportInTwo leaves an export after its first record, and goes on with another one.
func (l *lifecycleSteps) exportInTwo(ctx context.Context, id string) ([]*pb.Record, error) {
	request := &pb.ExportConversationsRequest{ConversationIds: []string{id}}
	broken, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.transfers.ExportConversations(broken, request)
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	cancel()
	request.ResumeToken = first.GetResumeToken()
	rest, err := l.exportAll(ctx, request)
	return append([]*pb.Record{first}, rest...), err
}

func (l *lifecycleSteps) exportAll(ctx context.Context, request *pb.ExportConversationsRequest) ([]*pb.Record, error) {
	stream, err := l.transfers.ExportConversations(ctx, request)
	if err != nil {
		return nil, err
	}
	return receiveAll(stream)
}

// erase removes the forks of a conversation, and reads the receipt.
func (l *lifecycleSteps) erase(ctx context.Context, source *scenario) error {
	id := uuid.NewString()
	stream, err := l.erasures.EraseSubject(ctx, &pb.EraseSubjectRequest{
		Subject:   &pb.EraseSubjectRequest_Filter{Filter: forksOf(source)},
		RequestId: id,
	})
	if err != nil {
		return err
	}
	told, err := receiveAll(stream)
	if err != nil {
		return err
	}
	receipt, err := l.erasures.GetErasure(ctx, &pb.GetErasureRequest{ErasureId: id})
	if err != nil {
		return err
	}
	if !proto.Equal(told[len(told)-1], receipt) || receipt.GetState() != pb.Erasure_STATE_DONE ||
		receipt.GetConversationCount() != 1 || receipt.GetItemCount() != 2 {
		return fmt.Errorf("unexpected receipt: %v after %v", receipt, told)
	}
	_, err = l.erasures.GetErasure(ctx, &pb.GetErasureRequest{ErasureId: uuid.NewString()})
	return expect(err, codes.NotFound, "ERASURE_NOT_FOUND")
}

// importAll sends records, and expects to be told of a head and of an imported conversation.
func (l *lifecycleSteps) importAll(ctx context.Context, records []*pb.Record, created bool) error {
	stream, err := l.transfers.ImportConversations(ctx)
	if err != nil {
		return err
	}
	for _, record := range records {
		if err := stream.Send(&pb.ImportConversationsRequest{Record: record}); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	answers, err := receiveAll(stream)
	if err != nil {
		return err
	}
	if len(answers) != 2 || answers[1].GetImported() == nil || answers[1].GetImported().GetCreated() != created {
		return fmt.Errorf("want created %v, got %v", created, answers)
	}
	return nil
}

func (s *scenario) branchWithItems(ctx context.Context, words ...string) (*scenario, []*pb.Item, error) {
	made, err := s.branch(ctx, words...)
	if err != nil {
		return nil, nil, err
	}
	items, err := made.list(ctx, pb.Order_ORDER_ASCENDING, 100)
	return made, items, err
}

func (s *scenario) expectItems(ctx context.Context, want []*pb.Item) error {
	got, err := s.list(ctx, pb.Order_ORDER_ASCENDING, 100)
	same := func(a, b *pb.Item) bool { return proto.Equal(a, b) }
	if err != nil || !slices.EqualFunc(got, want, same) {
		return fmt.Errorf("want %v, got %v, %v", want, got, err)
	}
	return nil
}

func (s *scenario) expectGone(ctx context.Context) error {
	_, err := s.client.GetConversation(ctx, &pb.GetConversationRequest{ConversationId: s.conversation.GetId()})
	return expect(err, codes.NotFound, "CONVERSATION_NOT_FOUND")
}

// receiveAll returns the messages of a stream that ends with OK.
func receiveAll[T any](stream grpc.ServerStreamingClient[T]) ([]*T, error) {
	var found []*T
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		found = append(found, message)
	}
}

// forksOf returns the filter that finds them.
func forksOf(source *scenario) string {
	return fmt.Sprintf("forked_from = %q", source.conversation.GetId())
}
