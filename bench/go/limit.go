package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "limit/gen/conversations/v1"
)

// limit has the methods that the workloads call; each runs one statement. The id of an item is its sequence.
type limit struct {
	pb.UnimplementedConversationsServiceServer
	pool *pgxpool.Pool
	run  statements
}

func (l *limit) CreateConversation(ctx context.Context, request *pb.CreateConversationRequest) (*pb.Conversation, error) {
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		return nil, failed(err)
	}
	id, metadata := "conv_"+hex.EncodeToString(random), request.GetConversation().GetMetadata()
	encoded, err := encode(metadata)
	if err != nil {
		return nil, failed(err)
	}
	var created time.Time
	if err := l.pool.QueryRow(ctx, l.run.Create, id, encoded).Scan(&created); err != nil {
		return nil, failed(err)
	}
	return &pb.Conversation{Id: id, Metadata: metadata, CreateTime: timestamppb.New(created)}, nil
}

func (l *limit) GetConversation(ctx context.Context, request *pb.GetConversationRequest) (*pb.Conversation, error) {
	return conversation(request.ConversationId, l.pool.QueryRow(ctx, l.run.Get, request.ConversationId))
}

func (l *limit) UpdateConversation(ctx context.Context, request *pb.UpdateConversationRequest) (*pb.Conversation, error) {
	id := request.GetConversation().GetId()
	encoded, err := encode(request.GetConversation().GetMetadata())
	if err != nil {
		return nil, failed(err)
	}
	return conversation(id, l.pool.QueryRow(ctx, l.run.Update, id, encoded))
}

func (l *limit) CreateItems(ctx context.Context, request *pb.CreateItemsRequest) (*pb.CreateItemsResponse, error) {
	response := &pb.CreateItemsResponse{Items: make([]*pb.Item, len(request.Items))}
	bodies := make([][]byte, len(request.Items))
	for place, sent := range request.Items {
		body, err := proto.Marshal(sent.GetItem())
		if err != nil {
			return nil, failed(err)
		}
		response.Items[place], bodies[place] = sent.GetItem(), body
	}
	var base int64
	row := l.pool.QueryRow(ctx, l.run.Append, request.ConversationId, int64(len(bodies)), bodies)
	if err := row.Scan(&base); err != nil {
		return nil, failed(err)
	}
	for place, item := range response.Items {
		item.Sequence = base + int64(place) + 1
	}
	return response, nil
}

func (l *limit) ListItems(ctx context.Context, request *pb.ListItemsRequest) (*pb.ListItemsResponse, error) {
	statement, cursor := l.run.Newest, int64(math.MaxInt64)
	if request.Order == pb.Order_ORDER_ASCENDING {
		statement, cursor = l.run.Oldest, 0
	}
	if request.GetPageToken() != "" {
		var err error
		if cursor, err = strconv.ParseInt(request.GetPageToken(), 10, 64); err != nil {
			return nil, status.Error(codes.InvalidArgument, "page token")
		}
	}
	size := int(request.PageSize)
	if size == 0 {
		size = 20
	}
	rows, err := l.pool.Query(ctx, statement, request.ConversationId, cursor, size+1)
	if err != nil {
		return nil, failed(err)
	}
	items, err := pgx.CollectRows(rows, item)
	if err != nil {
		return nil, failed(err)
	}
	response := &pb.ListItemsResponse{Items: items}
	if response.HasMore = len(items) > size; response.HasMore {
		response.Items = items[:size]
		response.NextPageToken = strconv.FormatInt(items[size-1].Sequence, 10)
	}
	return response, nil
}

func (l *limit) GetItem(ctx context.Context, request *pb.GetItemRequest) (*pb.Item, error) {
	sequence, err := sequenceOf(request.ItemId)
	if err != nil {
		return nil, err
	}
	rows, err := l.pool.Query(ctx, l.run.One, request.ConversationId, sequence)
	if err != nil {
		return nil, failed(err)
	}
	found, err := pgx.CollectExactlyOneRow(rows, item)
	if err != nil {
		return nil, failed(err)
	}
	return found, nil
}

func (l *limit) BatchGetItems(ctx context.Context, request *pb.BatchGetItemsRequest) (*pb.BatchGetItemsResponse, error) {
	wanted := make([]int64, len(request.ItemIds))
	for place, id := range request.ItemIds {
		var err error
		if wanted[place], err = sequenceOf(id); err != nil {
			return nil, err
		}
	}
	rows, err := l.pool.Query(ctx, l.run.Some, request.ConversationId, wanted)
	if err != nil {
		return nil, failed(err)
	}
	items, err := pgx.CollectRows(rows, item)
	if err != nil {
		return nil, failed(err)
	}
	slices.SortFunc(items, func(one, other *pb.Item) int {
		return slices.Index(wanted, one.Sequence) - slices.Index(wanted, other.Sequence)
	})
	return &pb.BatchGetItemsResponse{Items: items}, nil
}

func (l *limit) DeleteItem(ctx context.Context, request *pb.DeleteItemRequest) (*pb.Conversation, error) {
	sequence, err := sequenceOf(request.ItemId)
	if err != nil {
		return nil, err
	}
	row := l.pool.QueryRow(ctx, l.run.DeleteItem, request.ConversationId, sequence)
	return conversation(request.ConversationId, row)
}

func (l *limit) DeleteConversation(ctx context.Context, request *pb.DeleteConversationRequest) (*emptypb.Empty, error) {
	if _, err := l.pool.Exec(ctx, l.run.Delete, request.ConversationId); err != nil {
		return nil, failed(err)
	}
	return &emptypb.Empty{}, nil
}

// access has the one method of its service that the workloads call.
type access struct {
	pb.UnimplementedAccessServiceServer
	pool *pgxpool.Pool
	run  statements
}

// CheckAccess allows everything on a row that exists.
func (a *access) CheckAccess(ctx context.Context, request *pb.CheckAccessRequest) (*pb.CheckAccessResponse, error) {
	if _, err := conversation(request.ConversationId, a.pool.QueryRow(ctx, a.run.Get, request.ConversationId)); err != nil {
		return nil, err
	}
	return &pb.CheckAccessResponse{Allowed: request.Permissions}, nil
}

// conversation reads a row of last_sequence, metadata and create_time.
func conversation(id string, row pgx.Row) (*pb.Conversation, error) {
	found := &pb.Conversation{Id: id}
	var encoded []byte
	var created time.Time
	if err := row.Scan(&found.LastSequence, &encoded, &created); err != nil {
		return nil, failed(err)
	}
	if err := json.Unmarshal(encoded, &found.Metadata); err != nil {
		return nil, failed(err)
	}
	found.CreateTime = timestamppb.New(created)
	return found, nil
}

// encode returns metadata as JSON; none is an empty object.
func encode(metadata map[string]string) (string, error) {
	if metadata == nil {
		return "{}", nil
	}
	encoded, err := json.Marshal(metadata)
	return string(encoded), err
}

// sequenceOf reads the id of an item, which is its sequence.
func sequenceOf(id string) (int64, error) {
	sequence, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return 0, status.Error(codes.InvalidArgument, "item id")
	}
	return sequence, nil
}

// item reads a row of sequence and body.
func item(row pgx.CollectableRow) (*pb.Item, error) {
	var sequence int64
	var body []byte
	if err := row.Scan(&sequence, &body); err != nil {
		return nil, err
	}
	found := &pb.Item{}
	err := proto.Unmarshal(body, found)
	found.Sequence = sequence
	return found, err
}

// failed returns NOT_FOUND where a statement found no row, else INTERNAL; the benchmark counts neither as done.
func failed(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return status.Error(codes.NotFound, "")
	}
	return status.Error(codes.Internal, err.Error())
}
